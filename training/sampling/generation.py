"""Tasks that generate a whole song: text2music, retake, audio2audio."""

from torch import Tensor

from training.sampling.job import SamplingJob
from training.sampling.noise import SeededNoise, mixture
from training.sampling.schedules import chosen_grid, shifted, sigma_grid


def text2music(job: SamplingJob) -> Tensor:
    """Generate from noise: latents float32 [B, C, bins, frames]."""
    noise = job.noise()
    return _solve(job, noise.draw(job.frames), _sigmas(job), noise)


def retake(job: SamplingJob) -> Tensor:
    """Vary the song of `seeds`: rotate its noise towards that of `retake_seeds` by `retake_variance`.

    Latents float32 [B, C, bins, frames].
    """
    noise = job.noise()
    turned = mixture(noise.draw(job.frames), job.retake_noise().draw(job.frames), job.options.retake_variance)
    return _solve(job, turned, _sigmas(job), noise)


def audio2audio(job: SamplingJob) -> Tensor:
    """Generate from the noised source, skipping the share `ref_audio_strength` of the way from noise.

    Latents float32 [B, C, bins, frames].
    """
    assert job.source is not None
    start = 1 - job.options.ref_audio_strength
    noise, level = job.noise(), float(shifted(start))
    noisy = job.source * (1 - level) + noise.draw(job.frames) * level
    return _solve(job, noisy, sigma_grid(job.options.steps, start).tolist(), noise)


def _sigmas(job: SamplingJob) -> list[float]:
    options = job.options
    return (chosen_grid(options.oss_steps) if options.oss_steps else sigma_grid(options.infer_steps)).tolist()


def _solve(job: SamplingJob, x: Tensor, sigmas: list[float], noise: SeededNoise) -> Tensor:
    steps = len(sigmas) - 1
    velocity = job.velocity(steps, job.frames)
    latents = x
    for index, latents in enumerate(job.solver(noise)(x, sigmas, velocity), 1):
        job.report(index, steps, latents)
    return latents
