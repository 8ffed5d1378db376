"""SSL features of the full profile: MERT and mHuBERT, the two encoders that ACE-Step is aligned with.

Gong et al., "ACE-Step" (arXiv 2506.00045), semantic alignment.
"""

from collections.abc import Mapping
from typing import Any, Literal

from schemas import columns
from stages import base, pcm
from stages.ssl import stored_states

# Field -> the rate that its encoder hears at, and the seconds it was trained on.
_ENCODERS = {"mert": (24_000, 5.0), "m-hubert": (16_000, 30.0)}


class Params(base.Params):
    """Which encoders, and how densely their states are stored.

    Attributes:
        mert: entry of the model store.
        mhubert: entry of the model store.
        rate: as the engine `whisper-encoder` has it; native is 75 Hz for MERT and 50 Hz for mHuBERT.
    """

    mert: str = "mert-v1-330m"
    mhubert: str = "mhubert-147"
    rate: Literal["latent", "native"] = "latent"


class SslHubert(base.Stage):
    """States of the last layer of both encoders over the whole mix, stored as `schemas.ssl_codec` says.

    The fields have the names of the released transformer's heads.
    """

    name = "ssl"
    type = columns.ssl_struct(*_ENCODERS)
    reads = {"pcm": pcm.PCM}
    Params = Params

    @property
    def models(self) -> tuple[str, ...]:
        """Both encoders."""
        return (self.params.mert, self.params.mhubert)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load them."""
        super().setup(weights)
        from stages.nets.hubert import HubertStates  # here, for transformers takes seconds to import

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
