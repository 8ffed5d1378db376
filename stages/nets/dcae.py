"""Music to latents: the encoder side of the music codec, which does not need the vocoder's weights."""

from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

from schemas.columns import LATENT_FRAME
from stages.nets.codec import ADaMoSHiFiGANV1, GriffinLim, MusicDCAE
from stages.nets.codec.codec import CODEC_HZ, COMPRESSION, VOCODERS, latent_length


class LatentEncoder:
    """Waveforms to whole latent frames."""

    def __init__(self, codec: MusicDCAE, device: str) -> None:
        self._codec, self._device = codec, device

    @classmethod
    def load(cls, autoencoder: Path, vocoder: Path, device: str = "cpu") -> "LatentEncoder":
        """Load the autoencoder in a folder; the vocoder's config defines the mel scale, by default the released one.

        Raises:
            ValueError: config and weights do not match, weights are not finite, or the latents do not have 8 channels
                and 16 bins.
            OSError: no config, or no safetensors weights.
        """
        codec = MusicDCAE.from_parts(_autoencoder(autoencoder), _vocoder(vocoder)).eval()
        frame = (codec.autoencoder.config["latent_channels"], codec.vocoder.config["n_mels"] // COMPRESSION)
        if frame != LATENT_FRAME:
            expected = f"expected {LATENT_FRAME[0]} and {LATENT_FRAME[1]}"
            raise ValueError(f"{autoencoder}: latents of {frame[0]} channels and {frame[1]} bins, {expected}")
        # Not `to`: the vocoder's weights are on the meta device and have to stay there.
        codec._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
        return cls(codec, device)

    def __call__(self, audio: np.ndarray) -> np.ndarray:
        """Float32 [2, samples] at 44.1 kHz to float16 [T, 8, 16]: one frame for every full 4096 samples."""
        frames = latent_length(audio.shape[1], CODEC_HZ)
        if not frames:
            return np.zeros((0, *LATENT_FRAME), np.float16)
        waveform = torch.from_numpy(np.ascontiguousarray(audio))[None].to(self._device)
        latents, _ = self._codec.encode(waveform, CODEC_HZ)
        return latents[0, :, :, :frames].permute(2, 0, 1).half().cpu().numpy()


def _autoencoder(folder: Path) -> AutoencoderDC:
    model, found = AutoencoderDC.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    # diffusers only warns about these, and leaves a missing weight randomly initialised.
    if wrong := [f"{kind.replace('_', ' ')} {keys[0]}" for kind, keys in found.items() if keys]:
        raise ValueError(f"{folder}: config and weights do not match: {', '.join(wrong)}")
    if not all(weight.isfinite().all() for weight in model.state_dict().values()):
        raise ValueError(f"{folder}: weights hold NaN or infinity")
    return model


def _vocoder(folder: Path) -> ADaMoSHiFiGANV1 | GriffinLim:
    """A vocoder that can only analyse: its mel scale is computed, its weights take no memory."""
    config = {}
    if (folder / "config.json").is_file():
        config = ADaMoSHiFiGANV1.load_config(folder, local_files_only=True)
    kind = VOCODERS.get(config.get("_class_name", ""), ADaMoSHiFiGANV1)
    with init_empty_weights(include_buffers=False):
        return kind(**{name: value for name, value in config.items() if not name.startswith("_")})
