"""Latents of mean 0 and variance 1 a channel, without a number that users of the codec would have to know.

While the autoencoder is trained, its codes are normalised by their running statistics and put where the released
codec's constants expect them. Afterwards all of that is folded into the encoder's last convolution. The decoder has
seen nothing else, its padding included, so that it stays as it is: the result is the same to the last rounding.
"""

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from torch import Tensor, nn

from training.model.codec import SCALE, SHIFT

_MOMENTUM = 0.1


class LatentNorm(nn.Module):
    """Codes [B, channels, bins, frames] to codes of which the codec makes latents near unit variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.statistics = nn.BatchNorm2d(channels, affine=False, momentum=_MOMENTUM)

    def forward(self, code: Tensor) -> Tensor:
        """Normalised by the batch's statistics in training and by the running ones otherwise."""
        return self.statistics(code) / SCALE - SHIFT


@torch.no_grad()
def fold(autoencoder: AutoencoderDC, norm: LatentNorm) -> AutoencoderDC:
    """An autoencoder whose encoder ends with the norm.

    The shortcut around the last convolution, a mean over groups of channels, becomes a part of its kernel's centre.
    """
    folded = AutoencoderDC(**_arguments(autoencoder) | {"encoder_out_shortcut": False})
    folded.load_state_dict(autoencoder.state_dict())
    last = folded.encoder.conv_out
    if autoencoder.config["encoder_out_shortcut"]:
        latents, hidden, height, width = last.weight.shape
        group = hidden // latents
        mean = torch.eye(latents).repeat_interleave(group, dim=1) / group
        last.weight[:, :, height // 2, width // 2] += mean.to(last.weight.device)
    statistics = norm.statistics
    assert statistics.running_mean is not None
    assert statistics.running_var is not None
    scale = (statistics.running_var + statistics.eps).rsqrt() / SCALE
    last.weight *= scale[:, None, None, None]
    last.bias.copy_((last.bias - statistics.running_mean) * scale - SHIFT)
    return folded.train(autoencoder.training)


def _arguments(autoencoder: AutoencoderDC) -> dict[str, object]:
    return {name: value for name, value in autoencoder.config.items() if not name.startswith("_")}
