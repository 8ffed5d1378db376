"""SSL features: a self-supervised encoder's states of the mix, the targets of representation alignment (REPA).

Yu et al., "Representation Alignment for Generation", 2024; ACE-Step (2025) aligns with MERT and mHuBERT in this way.
The small profile uses Whisper's encoder instead.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from schemas import columns, ssl_codec
from stages import base, pcm

_LATENT_SAMPLES = 512 * 8  # the mel's hop times the autoencoder's stride
_LATENT_RATE_HZ = pcm.RATE_HZ / _LATENT_SAMPLES


class SslParams(base.Params):
    """Which encoder, and how densely its states are stored.

    Attributes:
        model: entry of the model store, a Whisper encoder.
        rate: "latent" stores the mean unit state under each latent frame (10.77 Hz), "native" every unit state (50 Hz).
    """

    model: str = "whisper-base-encoder"
    rate: Literal["latent", "native"] = "latent"


class Ssl(base.Stage):
    """States of Whisper's encoder over the whole mix, stored as `schemas.ssl_codec` describes.

    At the latent rate there is one vector for every full latent frame of 4096 samples at 44.1 kHz.
    """

    name = "ssl"
    type = columns.ssl_struct("whisper_base")
    reads = {"pcm": pcm.PCM}
    Params = SslParams

    @property
    def models(self) -> tuple[str, ...]:
        """The encoder to load."""
        return (self.params.model,)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the encoder."""
        super().setup(weights)
        from stages.nets.whisper_encoder import WhisperStates  # here because transformers takes seconds to import

        self._encoder = WhisperStates.load(weights[self.params.model].path)

    def process(self, track: base.Track) -> dict[str, Any]:
        """Encode the mix."""
        states = self._encoder(pcm.mono(track["pcm"], self._encoder.input_rate_hz))
        samples = memoryview(track["pcm"]).nbytes // (2 * pcm.CHANNELS)
        return self.own(whisper_base=stored_states(states, self._encoder.rate_hz, samples, self.params.rate))


def stored_states(
    states: np.ndarray, native_hz: float, samples: int, rate: Literal["latent", "native"]
) -> dict[str, Any]:
    """One encoder's field of the column, as `schemas.columns.SSL_STATES`.

    Args:
        states: the encoder's states [n, dim].
        native_hz: rate of the states.
        samples: length of the track in samples at 44.1 kHz.
        rate: "latent" pools them to one vector for every full latent frame; "native" keeps them all.
    """
    if rate == "native":
        vectors, rate_hz = ssl_codec.normalize(states), native_hz
    else:
        vectors, rate_hz = (
            ssl_codec.pool(states, native_hz, samples // _LATENT_SAMPLES, _LATENT_RATE_HZ),
            _LATENT_RATE_HZ,
        )
    frames, dim = vectors.shape
    scales, data = ssl_codec.encode(vectors)
    return {"frames": frames, "dim": dim, "rate_hz": rate_hz, "scales": scales, "data": data}
