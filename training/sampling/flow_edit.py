"""Editing by the difference of two velocities (Kulikov et al., FlowEdit, arXiv 2412.08629)."""

from itertools import pairwise

import torch
from torch import Tensor

from training.sampling.conditions import Conditions
from training.sampling.guidance import ProjectedGuidance
from training.sampling.job import SamplingJob
from training.sampling.schedules import sigma_grid
from training.sampling.velocity import BranchedVelocity, Branches


def edit(job: SamplingJob) -> Tensor:
    """Edit the source: latents float32 [B, C, bins, frames], moved from its own conditions to the target's.

    Up to the share `n_max` of the steps, the source moves by the difference of the two velocities; the remaining steps
    sample freely.
    """
    assert job.source is not None
    assert job.target is not None
    options, noise = job.options, job.retake_noise()
    of_source = _Guided(job, job.conditions)
    of_target = _Guided(job, job.target)
    first, free = int(options.infer_steps * options.n_min), int(options.infer_steps * options.n_max)
    source, x = job.source, job.source
    source_momentum, target_momentum = ProjectedGuidance(), ProjectedGuidance()

    levels = list(pairwise(sigma_grid(options.infer_steps).tolist()))
    for index, (sigma, following) in enumerate(levels[first:], first):
        if index < free:
            velocity = torch.zeros_like(x)
            for _ in range(options.n_avg):
                noisy = (1 - sigma) * source + sigma * noise.draw(job.frames)
                moved = of_target(x + noisy - source, sigma, ProjectedGuidance())
                velocity = velocity + (moved - of_source(noisy, sigma, source_momentum)) / options.n_avg
        else:
            if index == free:
                x = x + (1 - sigma) * source + sigma * noise.draw(job.frames) - source
            velocity = of_target(x, sigma, target_momentum)
        x = x + (following - sigma) * velocity
        job.report(index - first + 1, len(levels) - first, x)
    return x


class _Guided:
    """The velocity under conditions, guided in every step against a branch without any."""

    def __init__(self, job: SamplingJob, conditions: Conditions) -> None:
        self._scale = job.options.guidance_scale
        encoded = Branches(job.transformer, conditions, job.options)
        branches = [encoded.conditional(), encoded.empty()] if self._scale > 1 else [encoded.conditional()]
        self._velocities = BranchedVelocity(job.transformer, branches, job.frames)

    def __call__(self, x: Tensor, sigma: float, guidance: ProjectedGuidance) -> Tensor:
        if self._scale <= 1:
            return self._velocities.first(x, sigma)
        conditional, empty = self._velocities.all(x, sigma)
        return guidance(conditional, empty, self._scale)
