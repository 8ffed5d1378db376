"""Whether a song has vocals, for how much of it, and the separated vocals."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from schemas import columns
from stages import base, pcm
from stages.signal.voice_activity import RATE_HZ, THRESHOLD, voiced_spans


class Separator(Protocol):
    """Separates the vocals from a mix."""

    def separate(self, mix: np.ndarray) -> Iterator[np.ndarray]:
        """Float32 [2, frames] at 44.1 kHz to its vocals, in consecutive pieces [2, some frames]."""


class VocalsParams(base.Params):
    """When a track counts as sung.

    Attributes:
        voice_threshold: probability at which the voice detector reports a voice.
        min_active_ratio: least share of the track with a voice.
        min_level_db: least energy of the vocals relative to the mix, both measured where there is a voice. The residue
            that separation leaves of an instrumental may resemble a voice for a while, but lies far below the mix.
    """

    voice_threshold: float = THRESHOLD
    min_active_ratio: float = 0.05
    min_level_db: float = -13.0


class Vocals(base.Stage):
    """Separates the vocals with Spleeter and looks for a voice in them with Silero VAD.

    `active_ratio` is the share of the track in which the stem has a voice. The working column `vocal_stem` is canonical
    PCM of the track's length; its bandwidth is 11 kHz.
    """

    name = "vocals"
    type = columns.VOCALS
    reads = {"pcm": pcm.PCM}
    working = {"vocal_stem": pcm.PCM}
    revision = 2
    Params = VocalsParams

    @property
    def models(self) -> tuple[str, ...]:
        """Spleeter with two stems."""
        return ("spleeter-2stems",)

    @property
    def model(self) -> str:
        """The separator and the voice detector, which comes with faster-whisper."""
        return f"{super().model}+silero-vad(faster-whisper {version('faster-whisper')})"

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the separator."""
        from stages.nets.spleeter import Spleeter  # here because torch takes seconds to import

        super().setup(weights)
        self._separator: Separator = Spleeter.load(weights["spleeter-2stems"].path)

    def process(self, track: base.Track) -> dict[str, Any]:
        """Measure the `pcm` column and keep its vocals."""
        # Encoded piece by piece, so that the whole stem never exists as floats.
        stem = b"".join(pcm.encode(piece) for piece in self._separator.separate(pcm.stereo(track["pcm"])))
        voice = pcm.mono(stem, RATE_HZ)
        spans = voiced_spans(voice, self.params.voice_threshold)
        active_ratio = sum(span.stop - span.start for span in spans) / max(1, len(voice))
        audible = _level_db(voice, pcm.mono(track["pcm"], RATE_HZ), spans) >= self.params.min_level_db
        row = self.own(has_vocals=audible and active_ratio >= self.params.min_active_ratio, active_ratio=active_ratio)
        return row | {"vocal_stem": stem} if "vocal_stem" in self.wanted else row


def _level_db(part: np.ndarray, whole: np.ndarray, spans: list[slice]) -> float:
    """Energy of `part` relative to `whole` within `spans`, in dB; minus infinity where there is nothing."""
    part_energy, whole_energy = (sum(float(np.square(x[span]).sum()) for span in spans) for x in (part, whole))
    return 10 * float(np.log10(part_energy / whole_energy)) if part_energy and whole_energy else -np.inf
