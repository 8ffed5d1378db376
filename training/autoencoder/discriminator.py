"""Tells spectrograms of music from reconstructions, patch by patch.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (2017), with the spectral
normalisation of Miyato et al. (2018) in place of batch statistics.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

_SLOPE = 0.2
_TINY, _LARGEST = 1e-6, 1e4
_WIDEST = 8  # times the first layer


class PatchDiscriminator(nn.Sequential):
    """Spectrograms [B, in_channels, bands, frames] to a score for every patch: the higher, the more like music.

    Args:
        in_channels: of the spectrograms.
        channels: of the first layer; each one after it has twice as many, up to eight times.
        layers: that halve the spectrogram.
    """

    def __init__(self, in_channels: int, channels: int, layers: int) -> None:
        widths = [channels * min(2**layer, _WIDEST) for layer in range(layers)]
        convolutions = [nn.Conv2d(*pair, 4, 2, 1) for pair in pairwise([in_channels, *widths])]
        convolutions.append(nn.Conv2d(widths[-1], widths[-1], 3, 1, 1))
        hidden = [part for layer in convolutions for part in (spectral_norm(layer), nn.LeakyReLU(_SLOPE))]
        super().__init__(*hidden, nn.Conv2d(widths[-1], 1, 3, 1, 1))


def discriminator_loss(real: Tensor, made: Tensor, kind: str) -> Tensor:
    """Of scores for spectrograms of music and for reconstructions: `hinge` or `least_squares`."""
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2
    return ((real - 1).square().mean() + made.square().mean()) / 2


def adversarial_loss(made: Tensor, kind: str) -> Tensor:
    """What the autoencoder has to lower to be taken for music."""
    return -made.mean() if kind == "hinge" else (made - 1).square().mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """How large the reconstruction's gradient in the last layer is, compared with the adversarial one's."""
    wanted, found = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)
    )
    return (wanted / (found + _TINY)).clamp(max=_LARGEST).detach()
