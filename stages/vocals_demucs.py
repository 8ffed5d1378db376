"""Vocals of the full profile: Hybrid Transformer Demucs."""

from collections.abc import Mapping

from stages import base, vocals


class Params(vocals.VocalsParams):
    """When a track counts as sung, and which separator.

    Attributes:
        separator: entry of the model store: htdemucs, or htdemucs-ft, which is a little better and as fast, for of its
            four networks only that for vocals runs.
    """

    separator: str = "htdemucs"


class VocalsDemucs(vocals.Vocals):
    """Separates the vocals with Demucs, at the full bandwidth, and looks for a voice in them with Silero VAD."""

    Params = Params

    @property
    def models(self) -> tuple[str, ...]:
        """The separator."""
        return (self.params.separator,)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load it; RuntimeError when the library is not installed."""
        base.Stage.setup(self, weights)
        from stages.nets.demucs import Demucs

        try:
            self._separator = Demucs.load(weights[self.params.separator].path, self.device)
        except ImportError as error:
            raise RuntimeError("Demucs is not installed: pip install songmill[separation]") from error
