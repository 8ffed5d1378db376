"""Tasks that generate a part of a song and keep the rest: repaint and extend."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from training.sampling.job import SamplingJob
from training.sampling.noise import mixture
from training.sampling.schedules import chosen_grid, sigma_grid
from training.sampling.window import Extension, repaint_window

_LONGEST = int(240 * 44_100 / 512 / 8)  # frames; the longest song the model was trained on


def repaint(job: SamplingJob) -> Tensor:
    """Regenerate the window between `repaint_start` and `repaint_end`: latents float32 [B, C, bins, frames].

    In the window the noise is rotated towards the second noise by `retake_variance`, which is also the share of the
    steps that are taken.

    Raises:
        SamplingError: the window lies outside the source or holds no frame.
    """
    assert job.source is not None
    window = repaint_window(job.options, job.frames)
    noise = job.noise().draw(job.frames)
    turned = mixture(noise, job.retake_noise().draw(job.frames), job.options.retake_variance)
    inside = _mask(window, noise)
    return _regenerate(job, job.source, torch.where(inside, turned, noise), inside)


def extend(job: SamplingJob) -> Tensor:
    """Add new frames before or after the source, or both: latents float32 [B, C, bins, left + frames + right].

    The model sees at most 240 s at once: of a longer source, only the part next to the new frames. If both sides
    together do not fit, the left one is generated first.

    Raises:
        SamplingError: no new frames, or too many.
    """
    assert job.source is not None
    extension = job.extension()
    sides = [extension]
    if extension.left and extension.right and job.frames + extension.left + extension.right > _LONGEST:
        sides = [Extension(extension.left, 0), Extension(0, extension.right)]
    noise, new = job.noise(), job.retake_noise()
    extended = job.source
    for part, side in enumerate(sides):
        fresh = new.draw(side.left + side.right)
        extended = _extend(job, extended, noise.draw(extended.shape[-1]), fresh, side, (part, len(sides)))
    return extended


def _extend(
    job: SamplingJob, source: Tensor, noise: Tensor, fresh: Tensor, side: Extension, part: tuple[int, int]
) -> Tensor:
    cut = max(0, source.shape[-1] + side.left + side.right - _LONGEST)
    seen = slice(cut, None) if side.right else slice(0, source.shape[-1] - cut)
    before, after = (source[..., :cut], source[..., :0]) if side.right else (source[..., :0], source[..., seen.stop :])
    source, noise = source[..., seen], noise[..., seen]

    mixed = torch.cat([fresh[..., : side.left], noise, fresh[..., fresh.shape[-1] - side.right :]], -1)
    kept = _mask(range(side.left, side.left + source.shape[-1]), mixed)
    generated = _regenerate(job, F.pad(source, (side.left, side.right)), mixed, ~kept, part)
    return torch.cat([before, generated, after], -1)


def _regenerate(
    job: SamplingJob, source: Tensor, noise: Tensor, inside: Tensor, part: tuple[int, int] = (0, 1)
) -> Tensor:
    """Solve from the noised source; after every step, frames outside are reset to the source at that noise level.

    `part` is the number of this part, from 0, and how many parts the task has.
    """
    options = job.options
    sigmas = (chosen_grid(options.oss_steps) if options.oss_steps else sigma_grid(options.infer_steps)).tolist()
    steps = len(sigmas) - 1
    first = int(steps * (1 - options.retake_variance))
    velocity = job.velocity(steps, source.shape[-1])
    x = _noised(source, noise, sigmas[first])
    for index, (sigma, following) in enumerate(list(pairwise(sigmas))[first:], first):
        x = x + (following - sigma) * velocity(x, index, sigma)
        x = torch.where(inside, x, _noised(source, noise, following))
        job.report(part[0] * (steps - first) + index - first + 1, part[1] * (steps - first), x)
    return x


def _noised(source: Tensor, noise: Tensor, sigma: float) -> Tensor:
    return (1 - sigma) * source + sigma * noise


def _mask(frames: range, like: Tensor) -> Tensor:
    positions = torch.arange(like.shape[-1], device=like.device)
    return (positions >= frames.start) & (positions < frames.stop)
