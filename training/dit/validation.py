"""Denoising loss on held-out songs at fixed noise levels, so that it is comparable from step to step."""

from collections.abc import Iterable

import torch
from torch import distributed

from training.data.batch import Batch
from training.dit.objective import Objective
from training.model import ACEStepTransformer2DModel

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # sigmas


@torch.no_grad()
def validation_loss(
    transformer: ACEStepTransformer2DModel,
    batches: Iterable[Batch],
    objective: Objective,
    device: torch.device,
    seed: int,
) -> dict[str, float]:
    """Mean denoising loss at each of `LEVELS`, with all conditions and the same noise every time.

    Args:
        transformer: the model, in eval mode.
        batches: held-out songs of this rank.
        objective: computes the loss.
        device: the model's device.
        seed: seed of the noise.

    Returns:
        `validation/sigma_<level>` for each level, and their mean as `validation/loss`; over all ranks.
    """
    totals = torch.zeros(len(LEVELS) + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        noise = torch.randn(batch.latents.shape, generator=generator)
        for level, sigma in enumerate(LEVELS):
            sigmas = torch.full((len(batch.latents),), sigma)
            losses = objective.at(transformer, batch.to(device), sigmas, noise)
            totals[level] += losses.per_song.sum().double().cpu()
        totals[-1] += len(batch.latents)
    if distributed.is_initialized():
        distributed.all_reduce(totals)
    means = (totals[:-1] / totals[-1]).tolist()
    by_level = {f"validation/sigma_{sigma}": mean for sigma, mean in zip(LEVELS, means, strict=True)}
    return {"validation/loss": sum(means) / len(means), **by_level}
