"""Noise levels of the steps: sigma is 1 for noise and 0 for clean latents; the model's timestep is 1000 sigma.

Grids of flow matching with a shift of 3 (Esser et al., arXiv 2403.03206, section 5.3.2).
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

SHIFT = 3.0
TRAIN_STEPS = 1000


Level = TypeVar("Level", float, Tensor)


def shifted(sigma: Level) -> Level:
    """Sigma shifted towards the noise."""
    return SHIFT * sigma / (1 + (SHIFT - 1) * sigma)


def sigma_grid(steps: int, start: float = 1.0) -> Tensor:
    """Sigmas of `steps` steps, float32 [steps + 1], from `shifted(shifted(start))` to 0.

    The ends are shifted, and then the whole grid once more, as in the released sampler.
    """
    ends = torch.linspace(shifted(start), shifted(1 / TRAIN_STEPS), steps, dtype=torch.float64)
    return _ended(shifted(ends))


def chosen_grid(indices: Sequence[int]) -> Tensor:
    """An optimal-step schedule: the sigmas at 1-based `indices` of the grid of `max(indices)` steps, shifted again.

    Float32 [len(indices) + 1].
    """
    fine = sigma_grid(max(indices)).double()
    return _ended(shifted(fine[torch.tensor(indices) - 1]))


def _ended(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()
