"""Latents of mean 0 and variance 1 a channel, without a number that users of the codec would have to know.

While the autoencoder is trained, its codes are normalised by their running statistics and put where the released
codec's constants expect them. Afterwards all of that is folded into the encoder's last convolution. The decoder has
seen nothing else, its padding included, so that it stays as it is: the result is the same to the last rounding.
"""

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from torch import Tensor, nn

from stages.nets.codec.codec import SCALE, SHIFT

_MOMENTUM = 0.02
_EPS = 1e-5


class LatentNorm(nn.Module):
    """Codes [B, channels, bins, frames] to codes of which the codec makes latents near unit variance.

    Training normalises by the running statistics as well, not by the batch's, which would take from every batch what
    its excerpts have in common, such as how loud they are.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @property
    def deviation(self) -> Tensor:
        """Of each channel."""
        return (self.variance + _EPS).sqrt()

    def forward(self, code: Tensor) -> Tensor:
        """Normalised; in training the statistics follow the codes."""
        if self.training:
            self.follow(code, _MOMENTUM)
        return (code - self.mean[:, None, None]) / (self.deviation[:, None, None] * SCALE) - SHIFT

    @torch.no_grad()
    def follow(self, code: Tensor, momentum: float) -> None:
        """Take in the statistics of a batch; the first one's are taken as they are."""
        momentum = momentum if self.seen else 1.0
        self.mean = self.mean.lerp(code.float().mean((0, 2, 3)), momentum)
        self.variance = self.variance.lerp(code.float().var((0, 2, 3)), momentum)
        self.seen += 1


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
    scale = 1 / (norm.deviation * SCALE)
    last.weight *= scale[:, None, None, None]
    last.bias.copy_((last.bias - norm.mean) * scale - SHIFT)
    return folded.train(autoencoder.training)


def _arguments(autoencoder: AutoencoderDC) -> dict[str, object]:
    return {name: value for name, value in autoencoder.config.items() if not name.startswith("_")}
