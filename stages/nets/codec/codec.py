"""The music codec: 48 kHz stereo to latents of 10.77 frames a second and back.

Gong et al., "ACE-Step: A Step Towards Music Generation Foundation Model" (arXiv 2506.00045): a deep-compression
autoencoder over the log-mel spectrograms of both channels, and a vocoder that renders each channel on its own.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from stages.nets.codec import autoencoder as spectrograms
from stages.nets.codec.griffin_lim import GriffinLim
from stages.nets.codec.resample import resample
from stages.nets.codec.vocoder import ADaMoSHiFiGANV1
from stages.nets.codec.windows import windowed

CODEC_HZ = 44_100
HOP = 512  # samples per mel frame
COMPRESSION = 8  # mel frames per latent frame
SAMPLES_PER_FRAME = HOP * COMPRESSION
LATENT_HZ = CODEC_HZ / SAMPLES_PER_FRAME
WINDOW = 256  # latent frames, 24 s

AUTOENCODER: dict[str, Any] = {
    "in_channels": 2,
    "latent_channels": 8,
    "attention_head_dim": 32,
    "encoder_block_types": ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [128, 256, 512, 1024],
    "decoder_block_out_channels": [128, 256, 512, 1024],
    "encoder_layers_per_block": [2, 2, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [5], [5]],
    "decoder_qkv_multiscales": [[], [], [5], [5]],
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}

Vocoder = ADaMoSHiFiGANV1 | GriffinLim
VOCODERS: dict[str, type[ADaMoSHiFiGANV1] | type[GriffinLim]] = {
    vocoder.__name__: vocoder for vocoder in (ADaMoSHiFiGANV1, GriffinLim)
}

_MEL_LOW, _MEL_HIGH = -11.0, 3.0
SHIFT, SCALE = 1.9091, 0.1786  # latent = (code of the autoencoder + SHIFT) * SCALE
_REFLECTED = 2  # mel frames at each edge that depend on the reflected margin
_FADE = 8  # mel frames


def scaled_mel(log_mel: Tensor) -> Tensor:
    """Log-mel bands, any shape, on the autoencoder's scale, about -1 to 1."""
    return 2 * (log_mel - _MEL_LOW) / (_MEL_HIGH - _MEL_LOW) - 1


def latent_length(samples: int, sample_rate_hz: int = 48_000) -> int:
    """Whole latent frames in `samples` of audio; `encode` returns one more if a partial frame is left over."""
    return samples * CODEC_HZ // (sample_rate_hz * SAMPLES_PER_FRAME)


class MusicDCAE(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Autoencoder and vocoder as one model; without arguments the released sizes with fresh weights.

    Args:
        autoencoder_config: arguments of diffusers' `AutoencoderDC`; the released ones if None.
        vocoder_config: arguments of the vocoder; the released ones if None.
        vocoder_class: a key of `VOCODERS`.

    Raises:
        ValueError: attention outside the autoencoder's deepest stage, a compression other than 8, or a vocoder for
            another sample rate or hop.
    """

    @register_to_config
    def __init__(
        self,
        autoencoder_config: dict[str, Any] | None = None,
        vocoder_config: dict[str, Any] | None = None,
        vocoder_class: str = ADaMoSHiFiGANV1.__name__,
    ) -> None:
        super().__init__()
        self.autoencoder = AutoencoderDC(**(autoencoder_config or AUTOENCODER))
        self.vocoder = VOCODERS[vocoder_class](**(vocoder_config or {}))
        spectrograms.check_layout(self.autoencoder)
        if self.autoencoder.spatial_compression_ratio != COMPRESSION:
            raise ValueError(f"the autoencoder compresses {self.autoencoder.spatial_compression_ratio} times, not 8")
        if (self.vocoder.config.sampling_rate, self.vocoder.config.hop_length) != (CODEC_HZ, HOP):
            raise ValueError(f"the vocoder is not one of {CODEC_HZ} Hz with hop {HOP}")

    @classmethod
    def from_parts(cls, autoencoder: AutoencoderDC, vocoder: ADaMoSHiFiGANV1 | GriffinLim) -> "MusicDCAE":
        """A codec that shares two loaded models: the released folders are separate."""
        with torch.device("meta"):
            codec = cls(_arguments(autoencoder.config), _arguments(vocoder.config), type(vocoder).__name__)
        codec.autoencoder, codec.vocoder = autoencoder, vocoder
        return codec.train(autoencoder.training)

    @torch.no_grad()
    def encode(
        self, waveform: Tensor, sample_rate_hz: int = 48_000, lengths: Tensor | None = None, window: int = WINDOW
    ) -> tuple[Tensor, Tensor]:
        """Waveforms to latents, in memory that depends on the window, apart from a few copies of the waveform.

        The autoencoder attends to the whole song, silence included, so items of unequal lengths are encoded one by one:
        each gives the same latents as alone, followed by zeros.

        Args:
            waveform: [B, 2, samples] in [-1, 1]; [B, 1, samples] is mono and goes to both channels.
            sample_rate_hz: of the waveform; the codec works at 44.1 kHz.
            lengths: int [B], samples of each item; None if all are full.
            window: latent frames computed at once.

        Returns:
            Latents float32 [B, 8, 16, T], near unit variance, and int64 [B], each item's whole frames, `latent_length`.

        Raises:
            ValueError: another number of channels, no samples, or lengths outside 1..samples.
        """
        if waveform.ndim != 3 or waveform.shape[1] not in (1, 2) or waveform.shape[2] == 0:
            raise ValueError(f"waveform is {list(waveform.shape)}, expected [batch, 1 or 2 channels, samples]")
        samples = [waveform.shape[2]] * len(waveform) if lengths is None else [int(length) for length in lengths]
        if len(samples) != len(waveform) or not all(0 < length <= waveform.shape[2] for length in samples):
            raise ValueError(f"lengths {samples} do not fit a waveform of {list(waveform.shape)}")
        frames = torch.tensor([latent_length(length, sample_rate_hz) for length in samples], device=waveform.device)
        if len(set(samples)) == 1:
            return self._encode(waveform[..., : samples[0]], sample_rate_hz, window), frames
        latents = [
            self._encode(item[None, :, :length], sample_rate_hz, window)[0]
            for item, length in zip(waveform, samples, strict=True)
        ]
        longest = max(latent.shape[-1] for latent in latents)
        return torch.stack([F.pad(latent, (0, longest - latent.shape[-1])) for latent in latents]), frames

    @torch.no_grad()
    def decode(self, latents: Tensor, sample_rate_hz: int = 48_000, window: int = WINDOW) -> Tensor:
        """Latents [B, 8, 16, T] to waveforms float32 [B, 2, ceil(T * 4096 * sample_rate_hz / 44100)].

        Memory depends on the window, apart from a few copies of the waveform; the result is the same as in one piece.

        Raises:
            ValueError: latents of another shape.
        """
        return resample(self._voice(self.decode_mel(latents, window), window), CODEC_HZ, sample_rate_hz)

    @torch.no_grad()
    def decode_mel(self, latents: Tensor, window: int = WINDOW) -> Tensor:
        """Latents [B, 8, 16, T] to log-mel bands float32 [B, 2, 128, T * 8] on the autoencoder's scale, [-1, 1]."""
        bins = self.vocoder.config.n_mels // COMPRESSION
        expected = (self.autoencoder.config.latent_channels, bins)
        if latents.ndim != 4 or tuple(latents.shape[1:3]) != expected or latents.shape[3] == 0:
            raise ValueError(
                f"latents are {list(latents.shape)}, expected [batch, {expected[0]}, {expected[1]}, frames]"
            )
        code = (latents.float() / SCALE - SHIFT).to(self.autoencoder.dtype)
        return spectrograms.decode(self.autoencoder, code, window).float()

    def _encode(self, waveform: Tensor, sample_rate_hz: int, window: int) -> Tensor:
        audio = resample(waveform, sample_rate_hz, CODEC_HZ).expand(-1, 2, -1)
        audio = F.pad(audio, (0, -audio.shape[-1] % SAMPLES_PER_FRAME)).flatten(0, 1)
        mel = windowed(self.vocoder.encode, audio, window=window * COMPRESSION, reach=_REFLECTED, columns=HOP)
        stereo = scaled_mel(mel).unflatten(0, (-1, 2)).to(self.autoencoder.dtype)
        return (spectrograms.encode(self.autoencoder, stereo, window).float() + SHIFT) * SCALE

    def _voice(self, scaled: Tensor, window: int) -> Tensor:
        """Scaled bands [B, 2, 128, frames] to waveforms [B, 2, frames * HOP] at 44.1 kHz."""
        mel = (scaled + 1) / 2 * (_MEL_HIGH - _MEL_LOW) + _MEL_LOW
        with self.vocoder.folded_weights():
            audio = windowed(
                self.vocoder.decode,
                mel.flatten(0, 1).to(self.vocoder.dtype),
                window=window * COMPRESSION,
                reach=self.vocoder.reach,
                fade=_FADE,
            )
        return audio.float().unflatten(0, (-1, 2))


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration without diffusers' own fields."""
    return {name: value for name, value in config.items() if not name.startswith("_")}
