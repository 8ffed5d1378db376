"""Initialisation as the best linear codec of some music.

From random weights, a small autoencoder needs a thousand steps to learn that neighbouring bands and frames are alike,
which principal components show at once. Every stage of the encoder is initialised with the principal components of its
input's 2 x 2 patches, every stage of the decoder with their transpose, and all nonlinear branches with weight 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import SanaMultiscaleLinearAttention
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC, DCDownBlock2d, DCUpBlock2d, ResBlock
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn

from stages.nets.codec.codec import SCALE, SHIFT
from training.autoencoder.latent_norm import LatentNorm

_TAPS = slice(1, 3)  # of a 3 x 3 kernel with stride 2 and padding 1: the 2 x 2 patch itself
_CENTRE = (1, 1)
_LOUD = 4.0  # see `_undo_norm`


@dataclass(frozen=True)
class _Components:
    """Principal components of 2 x 2 patches.

    Attributes:
        mean: [channels * 4], mean patch.
        basis: [coefficients, channels * 4], orthonormal rows, largest variance first.
    """

    mean: Tensor
    basis: Tensor

    @classmethod
    def of(cls, signal: Tensor, coefficients: int) -> "_Components":
        """Components of a signal [B, channels, bands, frames]."""
        patches = F.pixel_unshuffle(signal, 2).movedim(1, -1).flatten(0, 2).double()
        mean = patches.mean(0)
        centred = patches - mean
        _, vectors = torch.linalg.eigh(centred.T @ centred)  # smallest variance first
        return cls(mean.float(), vectors.flip(1).T[:coefficients].float())


def is_possible(autoencoder: AutoencoderDC) -> bool:
    """Whether every stage maps 2 x 2 patches, with spare channels before the last one."""
    config = autoencoder.config
    return (
        config["downsample_block_type"] == "Conv"
        and config["upsample_block_type"] == "pixel_shuffle"
        and config["encoder_layers_per_block"][0] == config["decoder_layers_per_block"][0] == 0
        and list(config["encoder_block_out_channels"]) == list(config["decoder_block_out_channels"])
        and config["decoder_block_out_channels"][1] > 4 * config["in_channels"]
    )


@torch.no_grad()
def start_linear(autoencoder: AutoencoderDC, norm: LatentNorm, music: Tensor) -> None:
    """Initialise the weights in place.

    Args:
        autoencoder: freshly initialised, one for which `is_possible` holds.
        norm: its latent normalisation; gets the statistics of the music.
        music: spectrograms [B, 2, bands, frames].
    """
    _straighten(autoencoder)
    encoder: Any = autoencoder.encoder
    decoder: Any = autoencoder.decoder
    stages = []
    signal = music
    for stage in _downsampling(encoder):
        components = _Components.of(signal, min(4 * signal.shape[1], stage.conv.out_channels))
        _analyse(stage, components)
        signal = _coefficients(signal, components)
        stages.append(components)

    codes = signal[:, : encoder.conv_out.out_channels]
    _select(encoder.conv_out, autoencoder.config["encoder_out_shortcut"])
    norm.follow(codes, 1.0)
    _place(decoder.conv_in, norm.mean, norm.deviation, autoencoder.config["decoder_in_shortcut"])

    *inner, outer = reversed(stages)
    *upsampling, last = _upsampling(decoder)
    for upsample, components in zip(upsampling, inner, strict=True):
        _synthesise(upsample, components)
    scale = _undo_norm(decoder.norm_out, upsampling[-1], len(outer.basis))
    _synthesise(last, outer, scale)


def _straighten(autoencoder: AutoencoderDC) -> None:
    """Switch off the nonlinear residual branches: each ends with a norm, whose weight is set to 0."""
    for module in autoencoder.modules():
        branch: Any = module
        if isinstance(module, ResBlock | GLUMBConv):
            nn.init.zeros_(branch.norm.weight)
        elif isinstance(module, SanaMultiscaleLinearAttention):
            nn.init.zeros_(branch.norm_out.weight)


def _downsampling(encoder: nn.Module) -> Iterator[DCDownBlock2d]:
    return (module for module in encoder.modules() if isinstance(module, DCDownBlock2d))


def _upsampling(decoder: Any) -> Iterator[DCUpBlock2d]:
    """Upsampling blocks, from the deepest to the output."""
    for stage in reversed(decoder.up_blocks):
        yield from (module for module in stage if isinstance(module, DCUpBlock2d))
    yield decoder.conv_out


def _coefficients(signal: Tensor, components: _Components) -> Tensor:
    patches = F.pixel_unshuffle(signal, 2)
    return torch.einsum("bcyt,kc->bkyt", patches - components.mean[:, None, None], components.basis)


def _analyse(stage: Any, components: _Components) -> None:
    """Make a stage output coefficients; further channels keep their weights."""
    conv, (count, size) = stage.conv, components.basis.shape
    weight = torch.zeros_like(conv.weight[:count])
    weight[:, : size // 4, _TAPS, _TAPS] = components.basis.unflatten(1, (-1, 2, 2))
    if stage.shortcut:
        means = torch.eye(conv.out_channels).repeat_interleave(stage.group_size, dim=1) / stage.group_size
        weight[:, :, _TAPS, _TAPS] -= means[:count].unflatten(1, (-1, 2, 2)).to(weight.device)
    conv.weight[:count] = weight
    conv.bias[:count] = -components.basis @ components.mean


def _select(conv: Any, shortcut: bool) -> None:
    """Make a convolution output the first coefficients as codes."""
    conv.weight.zero_()
    conv.bias.zero_()
    codes = conv.out_channels
    conv.weight[:, :codes, *_CENTRE] = torch.eye(codes, device=conv.weight.device)
    if shortcut:
        group = conv.in_channels // codes
        means = torch.eye(codes).repeat_interleave(group, dim=1) / group
        conv.weight[:, :, *_CENTRE] -= means.to(conv.weight.device)


def _place(conv: Any, mean: Tensor, deviation: Tensor, shortcut: bool) -> None:
    """Make a convolution output the first coefficients from normalised codes, and 0 for the others."""
    conv.weight.zero_()
    conv.bias.zero_()
    codes = conv.in_channels
    conv.weight[:codes, :, *_CENTRE] = torch.diag(deviation * SCALE)
    conv.bias[:codes] = mean + deviation * SCALE * SHIFT
    if shortcut:
        repeats = conv.out_channels // codes
        conv.weight[:, :, *_CENTRE] -= torch.eye(codes, device=conv.weight.device).repeat_interleave(repeats, dim=0)


def _synthesise(stage: Any, components: _Components, scale: float | None = None) -> None:
    """Make a stage output patches, and 0 on further channels.

    Args:
        stage: the stage to initialise.
        components: components of the patches.
        scale: by what its input coefficients were divided, before 1 was added; None if they are unchanged.
    """
    conv, (count, size) = stage.conv, components.basis.shape
    conv.weight.zero_()
    conv.bias.zero_()
    weight = components.basis.T * (scale or 1.0)
    conv.weight[:size, :count, *_CENTRE] = weight
    conv.bias[:size] = components.mean - (weight.sum(1) if scale else 0)
    if stage.shortcut:
        own = torch.eye(conv.in_channels, device=conv.weight.device).repeat_interleave(stage.repeats, dim=0)
        conv.weight[:, :, *_CENTRE] -= own


def _undo_norm(norm: Any, before: Any, used: int) -> float:
    """Make the decoder's last norm and ReLU almost linear; returns the norm's divisor.

    The norm divides by the root mean square over channels. Unused channels get a constant large enough to dominate it,
    and the others a bias that keeps them positive, so that the ReLU does not clip them.
    """
    channels = before.conv.out_channels // 4
    before.conv.bias[4 * used :] = _LOUD
    norm.bias[:used] = 1.0
    return _LOUD * math.sqrt((channels - used) / channels)
