"""Latents: the mix as encoded by the music codec, which is what the model learns to generate.

Gong et al., "ACE-Step" (arXiv 2506.00045): 8 channels of 16 bins, 10.77 frames a second; see `stages.nets.codec.codec`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from schemas import columns
from stages import base, pcm

_AUTOENCODER = "music_dcae_f8c8"
_VOCODER = "music_vocoder"
_CONFIG = "config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


class LatentsParams(base.Params):
    """Which codec.

    Attributes:
        codec: a folder with `music_dcae_f8c8/` as released. The vocoder's config beside it, in `music_vocoder/`,
            defines the mel scale; without it the released one is used. The vocoder's weights are not read.
    """

    codec: Path = Field(description="folder that holds music_dcae_f8c8/ and music_vocoder/")


class Latents(base.Stage):
    """The codec's latents of the whole mix: one frame for every full 4096 samples at 44.1 kHz, as in `ssl`.

    Stored as little-endian float16 [frames, 8, 16].
    """

    name = "latents"
    type = columns.LATENTS
    reads = {"pcm": pcm.PCM}
    Params = LatentsParams

    @property
    def files(self) -> tuple[Path, ...]:
        """The codec's configs and the autoencoder's weights."""
        autoencoder, vocoder = self.params.codec / _AUTOENCODER, self.params.codec / _VOCODER / _CONFIG
        weights = sorted(autoencoder.glob("*.safetensors")) or [autoencoder / _WEIGHTS]
        return (autoencoder / _CONFIG, *weights, *([vocoder] if vocoder.is_file() else []))

    @property
    def model(self) -> str:
        """The autoencoder and the digest of its files."""
        return self._model

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the codec."""
        super().setup(weights)
        from stages.nets.dcae import LatentEncoder  # here because diffusers takes seconds to import

        self._encoder = LatentEncoder.load(self.params.codec / _AUTOENCODER, self.params.codec / _VOCODER, self.device)
        self._model = f"{_AUTOENCODER}@{self.files_digest[:8]}"

    def process(self, track: base.Track) -> dict[str, Any]:
        """Encode the mix."""
        latents = self._encoder(pcm.stereo(track["pcm"]))
        return self.own(frames=len(latents), data=latents.astype("<f2").tobytes())
