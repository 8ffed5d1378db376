"""The latent frames that a repaint covers or an extension adds."""

from dataclasses import dataclass

from stages.nets.codec.codec import LATENT_HZ
from training.sampling.errors import SamplingError
from training.sampling.options import SamplingOptions

_MOST_NEW_S = 120.0  # per side; more would leave the model little of the source to continue


def frames_of(seconds: float) -> int:
    """Latent frames of a duration, rounded towards zero."""
    return int(seconds * LATENT_HZ)


def repaint_window(options: SamplingOptions, frames: int) -> range:
    """The frames to regenerate. An end within the last frame, which songs rarely fill, includes all of it.

    Raises:
        SamplingError: the window lies outside the source or covers no frame.
    """
    start, length = options.repaint_start, frames / LATENT_HZ
    end = length if options.repaint_end is None else options.repaint_end
    window = range(frames_of(start), frames if length - 1 / LATENT_HZ < end <= length else frames_of(end))
    if start < 0 or start >= length or end > length:
        raise SamplingError(
            f"the window {start:g}..{round(end, 2):g} s lies outside the source, which is {length:.2f} s long: "
            "choose one inside it, or use task extend to go beyond it"
        )
    if not window:
        raise SamplingError(
            f"the window {start:g}..{round(end, 2):g} s holds no latent frame ({1000 / LATENT_HZ:.0f} ms) "
            f"of the source, which is {length:.2f} s long: make it longer"
        )
    return window


@dataclass(frozen=True)
class Extension:
    """Frames to add to a source.

    Attributes:
        left: frames before it.
        right: frames after it.
    """

    left: int
    right: int

    @classmethod
    def of(cls, options: SamplingOptions, frames: int) -> "Extension":
        """From `extend_left` and `extend_right`, or from a repaint window that reaches beyond the source.

        Raises:
            SamplingError: there is nothing to add, or too much.
        """
        beyond = 0 if options.repaint_end is None else frames_of(options.repaint_end) - frames
        left = max(frames_of(options.extend_left), -frames_of(options.repaint_start))
        right = max(frames_of(options.extend_right), beyond, 0)
        if not left and not right:
            raise SamplingError("nothing to extend: set extend_left or extend_right to the seconds to add")
        if max(left, right) > frames_of(_MOST_NEW_S):
            raise SamplingError(f"at most {_MOST_NEW_S:g} s fit on a side at once: extend less, then extend the result")
        return cls(left, right)
