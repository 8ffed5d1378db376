"""From latents to the transformer's frames and back."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 32
_EPS = 1e-6


class PatchEmbed(nn.Module):
    """One patch spans all latent bins of a frame, so that the transformer sees a sequence in time."""

    def __init__(self, in_channels: int, patch: tuple[int, int], dim: int) -> None:
        super().__init__()
        hidden = 256 * in_channels
        self.early_conv_layers = nn.ModuleList(
            [
                _FrameConv(in_channels, hidden, patch, stride=patch),
                _MaskedGroupNorm(_GROUPS, hidden, eps=_EPS),
                nn.Conv2d(hidden, dim, 1),
            ]
        )

    def forward(self, latents: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Latents [B, channels, bins, T] to [B, T, D].

        The group norm's statistics are taken over the frames of `frame_mask`, boolean [B, T]; None is all frames.
        """
        patchify, norm, project = self.early_conv_layers
        frames = project(norm(patchify(latents), frame_mask)).flatten(2).mT
        # Later layers keep this memory layout, and are fastest on rows of D channels.
        return frames.clone(memory_format=torch.contiguous_format)


class _FrameConv(nn.Conv2d):
    """A convolution whose kernel is a whole frame, computed as a matrix product.

    oneDNN's bfloat16 convolution of this shape gives wrong results on CPUs with AMX if T is a multiple of 16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Latents [B, channels, bins, T] to [B, hidden, 1, T]."""
        return F.linear(x.flatten(1, 2).mT, self.weight.flatten(1), self.bias).mT[:, :, None]


class _MaskedGroupNorm(nn.GroupNorm):
    """Group norm whose mean and variance exclude padded frames."""

    def forward(self, x: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """`x` [B, C, 1, T] to the same, the statistics in float32."""
        if frame_mask is None:
            return super().forward(x)
        grouped = x.float().unflatten(1, (self.num_groups, -1))
        inside = frame_mask[:, None, None, None, :]
        count = frame_mask.sum(-1).clamp(min=1)[:, None, None, None, None] * grouped.shape[2]
        mean = (grouped * inside).sum((2, 3, 4), keepdim=True) / count
        centred = (grouped - mean) * inside
        variance = centred.square().sum((2, 3, 4), keepdim=True) / count
        normed = (centred * (variance + self.eps).rsqrt()).flatten(1, 2).to(x.dtype)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class FinalLayer(nn.Module):
    """Modulated norm and projection of every frame back to its patch."""

    def __init__(self, dim: int, patch: tuple[int, int], out_channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.RMSNorm(dim, eps=_EPS, elementwise_affine=False)
        self.linear = nn.Linear(dim, patch[0] * patch[1] * out_channels)
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Frames [B, T, D] and the time embedding [B, D] to latents [B, channels, bins, T]."""
        shift, scale = (self.scale_shift_table + time[:, None]).chunk(2, 1)
        x = self.linear(self.norm(x) * (1 + scale) + shift)
        height, width = self.patch
        x = x.unflatten(-1, (height, width, -1))  # [B, T, height, width, channels]
        return x.permute(0, 4, 2, 1, 3).flatten(3)
