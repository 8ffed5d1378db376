"""SSL features of the full profile: MERT and mHuBERT, the two encoders that ACE-Step is aligned with.

Gong et al., "ACE-Step" (arXiv 2506.00045), semantic alignment.
"""

from collections.abc import Mapping
from typing import Any, Literal

from schemas import columns
from stages import base, pcm
from stages.ssl import stored_states

# Field -> its encoder's input rate, and the length in seconds of the excerpts it was trained on.
_ENCODERS = {"mert": (24_000, 5.0), "m-hubert": (16_000, 30.0)}


class SslHubertParams(base.Params):
    """Which encoders, and how densely their states are stored.

    Attributes:
        mert: entry of the model store, a MERT encoder.
        mhubert: entry of the model store, an mHuBERT encoder.
        rate: as in the engine `whisper-encoder`; native is 75 Hz for MERT and 50 Hz for mHuBERT.
    """

    mert: str = "mert-v1-330m"
    mhubert: str = "mhubert-147"
    rate: Literal["latent", "native"] = "latent"


class SslHubert(base.Stage):
    """Last-layer states of both encoders over the whole mix, stored as `schemas.ssl_codec` describes.

    The fields are named after the released transformer's projection heads.
    """

    name = "ssl"
    type = columns.ssl_struct(*_ENCODERS)
    reads = {"pcm": pcm.PCM}
    Params = SslHubertParams

    @property
    def models(self) -> tuple[str, ...]:
        """Both encoders."""
        return (self.params.mert, self.params.mhubert)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load both encoders."""
        super().setup(weights)
        from stages.nets.hubert import HubertStates  # here because transformers takes seconds to import

        self._encoders = {
            field: HubertStates.load(weights[entry].path, rate_hz, chunk_s, self.device)
            for (field, (rate_hz, chunk_s)), entry in zip(_ENCODERS.items(), self.models, strict=True)
        }

    def process(self, track: base.Track) -> dict[str, Any]:
        """Encode the mix."""
        samples = memoryview(track["pcm"]).nbytes // (2 * pcm.CHANNELS)
        made = {
            field: stored_states(
                encoder(pcm.mono(track["pcm"], encoder.input_rate_hz)), encoder.rate_hz, samples, self.params.rate
            )
            for field, encoder in self._encoders.items()
        }
        return self.own(**made)
