"""Who sings, by an encoder trained with `songmill train speaker`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from schemas import columns
from stages import base, pcm
from stages.signal.voice_activity import voiced_segments

_CONFIG = "config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


class SpeakerSongmillParams(base.Params):
    """Which encoder.

    Attributes:
        encoder: a folder that `songmill train export` wrote from a speaker run.
    """

    encoder: Path = Field(description="folder that songmill train export wrote from a speaker run")


class SpeakerSongmill(base.Stage):
    """The embedding of the vocal stem, averaged over 10 s segments of its voiced parts.

    `embedding` has unit length and the encoder's dimension, by default 512, which is what the released transformer
    takes. It is all zeros for a track without vocals.
    """

    name = "speaker"
    type = columns.SPEAKER
    reads = {"vocal_stem": pcm.PCM, "vocals": pa.struct([columns.field("has_vocals", pa.bool_())])}
    Params = SpeakerSongmillParams

    @property
    def files(self) -> tuple[Path, ...]:
        """The encoder's config and weights."""
        weights = sorted(self.params.encoder.glob("*.safetensors")) or [self.params.encoder / _WEIGHTS]
        return (self.params.encoder / _CONFIG, *weights)

    @property
    def model(self) -> str:
        """The encoder and the digest of its files."""
        return self._model

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the encoder."""
        super().setup(weights)
        from stages.nets.speaker_encoder import VoiceEncoder  # here because diffusers takes seconds to import

        self._encoder = VoiceEncoder.load(self.params.encoder)
        self._model = f"speaker_encoder@{self.files_digest[:8]}"

    def process(self, track: base.Track) -> dict[str, Any]:
        """Embed the `vocal_stem` column."""
        sung = track["vocals"]["has_vocals"]
        segments = voiced_segments(track["vocal_stem"], self._encoder.rate_hz) if sung else []
        if not segments:
            return self.own(embedding=[0.0] * self._encoder.dim)
        mean = np.mean([self._encoder.embed(segment) for segment in segments], axis=0)
        return self.own(embedding=(mean / np.linalg.norm(mean)).tolist())
