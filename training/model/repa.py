"""Representation alignment (REPA, arXiv 2410.06940): a hidden layer is trained to match self-supervised features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def projector(dim: int, target_dim: int) -> nn.Sequential:
    """The head from hidden states [..., dim] to a feature space [..., target_dim]."""
    return nn.Sequential(
        nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, target_dim)
    )


def alignment_loss(projected: Tensor, targets: Sequence[Tensor], frame_mask: Tensor | None) -> Tensor:
    """Mean over items and frames of 1 - cosine, a float32 scalar (ACE-Step, arXiv 2506.00045).

    `projected` [B, T, dim] is interpolated linearly to the length of each target [frames, dim], whatever its rate. Only
    frames of `frame_mask`, boolean [B, T], are used; without it all frames, including padding.
    """
    losses = []
    for index, target in enumerate(targets):
        item = projected[index] if frame_mask is None else projected[index][frame_mask[index]]
        stretched = F.interpolate(item.float().mT[None], size=len(target), mode="linear")[0].mT
        losses.append(1 - F.cosine_similarity(stretched, target.float(), dim=-1).mean())
    return torch.stack(losses).mean()
