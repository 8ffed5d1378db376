"""Latents of zero mean and unit variance per channel, without constants that users of a codec would have to know.

During training, codes are normalised by running statistics and scaled and shifted so that the released codec's
constants bring them to unit variance. On export, this is folded into the encoder's last convolution. The decoder has
only ever seen normalised codes, padding included, and stays as it is: the result is the same up to rounding.
"""

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from torch import Tensor, nn

from stages.nets.codec.codec import SCALE, SHIFT

_MOMENTUM = 0.02
_EPS = 1e-5


class LatentNorm(nn.Module):
    """Normalises codes [B, channels, bins, frames] so that the codec's latents have about unit variance.

    Training uses the running statistics too, not those of the batch, which would remove what its crops have in common,
    such as their loudness.
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
        """Standard deviation of each channel, [channels]."""
        return (self.variance + _EPS).sqrt()

    def forward(self, code: Tensor) -> Tensor:
        """Normalised codes; in training mode this updates the running statistics."""
        if self.training:
            self.follow(code, _MOMENTUM)
        return (code - self.mean[:, None, None]) / (self.deviation[:, None, None] * SCALE) - SHIFT

    @torch.no_grad()
    def follow(self, code: Tensor, momentum: float) -> None:
        """Update the running statistics with a batch; the first batch sets them."""
        momentum = momentum if self.seen else 1.0
        self.mean = self.mean.lerp(code.float().mean((0, 2, 3)), momentum)
        self.variance = self.variance.lerp(code.float().var((0, 2, 3)), momentum)
        self.seen += 1


@torch.no_grad()
def fold(autoencoder: AutoencoderDC, norm: LatentNorm) -> AutoencoderDC:
    """A copy of the autoencoder with the normalisation folded into its encoder's last convolution.

    The shortcut around that convolution, a mean over groups of channels, is added to the centre of its kernel.
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
