"""Noise by seed: the same on every device and in every batch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class SeededNoise:
    """Standard normal latents, each item's from a generator of its own.

    Args:
        seeds: one an item.
        shape: channels and bins of the latents.
        device: where drawn noise goes; it is drawn on the CPU, for the generators of devices differ.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape = shape
        self._device = device

    def draw(self, frames: int) -> Tensor:
        """Float32 [B, C, bins, frames], the generators' next."""
        items = [torch.randn(1, *self._shape, frames, generator=generator) for generator in self._generators]
        return torch.cat(items).to(self._device)


def mixture(noise: Tensor, other: Tensor, variance: float) -> Tensor:
    """Noise on the way to other noise, of unit variance all along."""
    angle = variance * math.pi / 2
    return math.cos(angle) * noise + math.sin(angle) * other
