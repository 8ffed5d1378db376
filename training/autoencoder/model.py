"""The autoencoder in training, with its latents kept near unit variance."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from torch import Tensor, nn

from stages.nets.codec import autoencoder as spectrograms
from stages.nets.codec.codec import AUTOENCODER, SCALE, SHIFT, scaled_mel
from stages.nets.codec.mel import LogMel
from training.autoencoder.latent_norm import LatentNorm, fold
from training.autoencoder.linear_start import is_possible, start_linear
from training.checkpoints.released_layout import load_autoencoder


class NoSuchModel(ValueError):  # noqa: N818 - names the problem
    """Sizes that do not make an autoencoder for the codec."""


class SpectrogramAutoencoder(nn.Module):
    """Maps spectrograms to their reconstructions, through diffusers' own encoder and decoder.

    Args:
        autoencoder: the model to train.
        normalise: normalise the latents. Not for a released autoencoder, whose latents other models were trained on.
    """

    def __init__(self, autoencoder: AutoencoderDC, *, normalise: bool) -> None:
        super().__init__()
        spectrograms.check_layout(autoencoder)
        self.autoencoder = autoencoder
        self.latents = LatentNorm(autoencoder.config["latent_channels"]) if normalise else nn.Identity()

    def encode(self, spectrogram: Tensor) -> Tensor:
        """Spectrograms [B, 2, 128, frames * 8] on the codec's scale to codes [B, 8, 16, frames]."""
        return self.latents(self.autoencoder.encoder(spectrogram))

    def decode(self, code: Tensor) -> Tensor:
        """Codes [B, 8, 16, frames] to spectrograms [B, 2, 128, frames * 8]."""
        return self.autoencoder.decoder(code)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """The reconstruction of spectrograms [B, 2, 128, frames * 8]."""
        return self.decode(self.encode(spectrogram))

    @property
    def last_layer(self) -> Tensor:
        """The weight of the decoder's output convolution."""
        last: Any = self.autoencoder.decoder.conv_out
        weight: Tensor = last.weight if isinstance(last, nn.Conv2d) else last.conv.weight
        return weight

    def start_linear(self, music: Tensor) -> None:
        """Initialise as the best linear codec of some music, spectrograms [B, 2, 128, frames].

        Raises:
            NoSuchModel: the model's layout does not allow it.
        """
        if not isinstance(self.latents, LatentNorm) or not is_possible(self.autoencoder):
            raise NoSuchModel(
                "linear_start needs no layers in the first stages, upsample_block_type: pixel_shuffle, and as many "
                "channels in the decoder's stages as in the encoder's, more than 8 in the second"
            )
        start_linear(self.autoencoder, self.latents, music)

    def finished(self) -> AutoencoderDC:
        """The autoencoder with the normalisation folded in: the same codes and reconstructions."""
        return fold(self.autoencoder, self.latents) if isinstance(self.latents, LatentNorm) else self.autoencoder


def build_model(sizes: dict[str, Any], checkpoint: Path | None) -> SpectrogramAutoencoder:
    """The model to train: loaded from a checkpoint, or new.

    Args:
        sizes: arguments of diffusers' `AutoencoderDC` for a new model; missing ones take the released values.
        checkpoint: folder that holds `music_dcae_f8c8/`; None makes a new model.

    Raises:
        CheckpointProblem: the checkpoint is damaged.
        NoSuchModel: the sizes do not make an autoencoder for the codec.
    """
    if checkpoint:
        return SpectrogramAutoencoder(load_autoencoder(checkpoint), normalise=False)
    try:
        _check_sizes(sizes)
        return SpectrogramAutoencoder(AutoencoderDC(**AUTOENCODER | sizes), normalise=True)
    except (TypeError, ValueError, RuntimeError, IndexError, ZeroDivisionError) as problem:  # diffusers checks little
        raise NoSuchModel(str(problem)) from problem


def _check_sizes(sizes: dict[str, Any]) -> None:
    """Catch stages that do not fit together, which would only fail in the first step."""
    with torch.device("meta"):
        frame = torch.zeros(1, 2, 128, 8)
        made = AutoencoderDC(**AUTOENCODER | sizes)(frame).sample
    if made.shape != frame.shape:
        raise ValueError(f"it turns spectrograms {list(frame.shape)} into {list(made.shape)}")


def as_latents(code: Tensor) -> Tensor:
    """The codec's latents for codes, of the same shape."""
    return (code + SHIFT) * SCALE


class StereoMel(nn.Module):
    """Waveforms [B, 2, samples] at 44.1 kHz to spectrograms [B, 2, 128, samples / 512] on the codec's scale."""

    def __init__(self) -> None:
        super().__init__()
        self.log_mel = LogMel()

    @torch.no_grad()
    def forward(self, waveforms: Tensor) -> Tensor:
        """Spectrograms of both channels."""
        return scaled_mel(self.log_mel(waveforms.flatten(0, 1))).unflatten(0, (-1, 2))
