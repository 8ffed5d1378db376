"""SSL features: what a speech encoder hears in the mix, the targets of representation alignment (REPA).

Yu et al., "Representation Alignment for Generation", 2024; ACE-Step (2025) aligns with MERT and mHuBERT in this way.
The small profile has Whisper's encoder in their place.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from schemas import ssl_codec
from schemas.columns import ssl_struct
from stages import pcm
from stages.base import Params, Stage, Track, Weights

LATENT_RATE_HZ = pcm.RATE_HZ / (512 * 8)  # the mel's hop times the autoencoder's stride: 10.77 Hz


class SslParams(Params):
    """Which encoder, and how densely its states are stored.

    Attributes:
        model: entry of the model store, a Whisper encoder.
        rate: "latent" stores the mean unit state under each latent frame (10.77 Hz), "native" every unit state (50 Hz).
    """

    model: str = "whisper-base-encoder"
    rate: Literal["latent", "native"] = "latent"


class Ssl(Stage):
    """States of Whisper's encoder over the whole mix, stored as `schemas.ssl_codec` says.

    At the latent rate there are floor(seconds * 10.77) frames, as many as the track has latents.
    """

    name = "ssl"
    type = ssl_struct("whisper_base")
    reads = {"pcm": pcm.PCM}
    Params = SslParams

    @property
    def models(self) -> tuple[str, ...]:
        return (self.params.model,)

    def setup(self, weights: Mapping[str, Weights]) -> None:
        super().setup(weights)
        from stages.nets.whisper_encoder import WhisperStates  # here, for transformers takes seconds to import

        self._encoder = WhisperStates(weights[self.params.model].path)

    def process(self, track: Track) -> dict[str, Any]:
        audio = pcm.mono(track["pcm"])
        states = self._encoder(pcm.mono(track["pcm"], self._encoder.input_rate_hz))
        native_hz = self._encoder.rate_hz
        if self.params.rate == "native":
            return self.own(whisper_base=_stored(ssl_codec.normalize(states), native_hz))
        frames = int(len(audio) * LATENT_RATE_HZ / pcm.RATE_HZ)
        return self.own(whisper_base=_stored(ssl_codec.pool(states, native_hz, frames, LATENT_RATE_HZ), LATENT_RATE_HZ))


def _stored(vectors: np.ndarray, rate_hz: float) -> dict[str, Any]:
    scales, data = ssl_codec.encode(vectors)
    return {"frames": vectors.shape[0], "dim": vectors.shape[1], "rate_hz": rate_hz, "scales": scales, "data": data}
