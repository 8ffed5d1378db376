"""A patch discriminator between spectrograms of music and reconstructions.

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
_WIDEST = 8  # most channels, as a multiple of the first layer's


class PatchDiscriminator(nn.Sequential):
    """Maps spectrograms [B, in_channels, bands, frames] to one score per patch; higher means more like music.

    Args:
        in_channels: channels of the spectrograms.
        channels: channels of the first layer; each further layer has twice as many, up to eight times.
        layers: number of layers that halve the spectrogram.
    """

    def __init__(self, in_channels: int, channels: int, layers: int) -> None:
        widths = [channels * min(2**layer, _WIDEST) for layer in range(layers)]
        convolutions = [nn.Conv2d(*pair, 4, 2, 1) for pair in pairwise([in_channels, *widths])]
        convolutions.append(nn.Conv2d(widths[-1], widths[-1], 3, 1, 1))
        hidden = [part for layer in convolutions for part in (spectral_norm(layer), nn.LeakyReLU(_SLOPE))]
        super().__init__(*hidden, nn.Conv2d(widths[-1], 1, 3, 1, 1))


def discriminator_loss(real: Tensor, made: Tensor, kind: str) -> Tensor:
    """Loss of the discriminator from its scores for music and for reconstructions; `hinge` or `least_squares`."""
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2
    return ((real - 1).square().mean() + made.square().mean()) / 2


def adversarial_loss(made: Tensor, kind: str) -> Tensor:
    """Adversarial loss of the autoencoder from the scores for its reconstructions; `hinge` or `least_squares`."""
    return -made.mean() if kind == "hinge" else (made - 1).square().mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of the gradient norms in the last layer: reconstruction loss over adversarial loss, at most 10,000."""
    wanted, found = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)
    )
    return (wanted / (found + _TINY)).clamp(max=_LARGEST).detach()
