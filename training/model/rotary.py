"""Rotary position embedding (Su et al., "RoFormer", arXiv 2104.09864) in the variant that ACE-Step was trained with."""

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]  # cosines and sines, float32 [B or 1, 1, positions, head_dim]


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> Rotary:
    """Cosines and sines of `positions` [B or 1, positions], for queries and keys [B, heads, positions, head_dim].

    Always float32: in bfloat16 the integers above 256 are not exact.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[:, None, :, None] * theta**-exponents
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: Rotary) -> Tensor:
    """Rotate `x` [B, heads, positions, head_dim] by its positions, in its own dtype.

    The table repeats its frequencies by halves while the rotation pairs adjacent channels. These conventions do not
    match, but the released weights were trained with exactly this combination.
    """
    cos, sin = table
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)
