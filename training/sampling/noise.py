"""Seeded noise, the same on every device and in every batch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class SeededNoise:
    """Standard normal latents, drawn from a separate generator for each item.

    Args:
        seeds: one per item.
        shape: channels and bins of the latents.
        device: device of the result; the noise is drawn on the CPU, since generators differ between devices.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = device

    def draw(self, frames: int) -> Tensor:
        """The next noise from the generators, float32 [B, C, bins, frames]."""
        items = [torch.randn(1, *self._shape, frames, generator=generator) for generator in self._generators]
        return torch.cat(items).to(self._device)


def mixture(noise: Tensor, other: Tensor, variance: float) -> Tensor:
    """Noise rotated towards `other`, by 90 degrees at a variance of 1; it keeps unit variance."""
    angle = variance * math.pi / 2
    return math.cos(angle) * noise + math.sin(angle) * other
