"""Who sings: one embedding of the singer's voice per track."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from schemas import columns
from stages import base, pcm
from stages.signal.voice_activity import voiced_segments


class Speaker(base.Stage):
    """Resemblyzer's GE2E embedding of the vocal stem, averaged over 10 s segments of its voiced parts.

    `embedding` has 256 values >= 0 and unit length: the dot product of two is their cosine similarity. It is all zeros
    for a track without vocals.
    """

    name = "speaker"
    type = columns.SPEAKER
    reads = {"vocal_stem": pcm.PCM, "vocals": pa.struct([columns.field("has_vocals", pa.bool_())])}

    @property
    def models(self) -> tuple[str, ...]:
        """Resemblyzer's pretrained encoder."""
        return ("resemblyzer",)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the encoder."""
        from stages.nets.resemblyzer import SpeakerEncoder  # here because torch takes seconds to import

        super().setup(weights)
        self._encoder = SpeakerEncoder.load(weights["resemblyzer"].path)

    def process(self, track: base.Track) -> dict[str, Any]:
        """Embed the `vocal_stem` column."""
        from stages.nets.resemblyzer import DIM, RATE_HZ

        segments = voiced_segments(track["vocal_stem"], RATE_HZ) if track["vocals"]["has_vocals"] else []
        if not segments:
            return self.own(embedding=[0.0] * DIM)
        mean = np.mean([self._encoder.embed(segment) for segment in segments], axis=0)
        return self.own(embedding=(mean / np.linalg.norm(mean)).tolist())
