"""Tasks that solve the flow from beginning to end: text2music, retake, audio2audio."""

from torch import Tensor

from training.sampling.job import Song
from training.sampling.noise import SeededNoise, mixture
from training.sampling.schedules import chosen_grid, shifted, sigma_grid
from training.sampling.solvers import Euler, Heun, Pingpong, Solver


def text2music(song: Song) -> Tensor:
    """Latents float32 [B, C, bins, frames] from noise."""
    noise = song.noise()
    return _solve(song, noise.draw(song.frames), _sigmas(song), noise)


def retake(song: Song) -> Tensor:
    """The song of the first seed again, its noise turned towards the second seed's by `retake_variance`."""
    noise = song.noise()
    turned = mixture(noise.draw(song.frames), song.retake_noise().draw(song.frames), song.options.retake_variance)
    return _solve(song, turned, _sigmas(song), noise)


def audio2audio(song: Song) -> Tensor:
    """A song after the source: `ref_audio_strength` of the way to the source's latents is not taken."""
    assert song.source is not None
    start = 1 - song.options.ref_audio_strength
    noise, level = song.noise(), float(shifted(start))
    noisy = song.source * (1 - level) + noise.draw(song.frames) * level
    return _solve(song, noisy, sigma_grid(song.options.steps, start).tolist(), noise)


def _sigmas(song: Song) -> list[float]:
    options = song.options
    return (chosen_grid(options.oss_steps) if options.oss_steps else sigma_grid(options.infer_steps)).tolist()


def _solve(song: Song, x: Tensor, sigmas: list[float], noise: SeededNoise) -> Tensor:
    steps = len(sigmas) - 1
    velocity = song.velocity(steps, song.frames)
    latents = x
    for index, latents in enumerate(_solver(song, noise)(x, sigmas, velocity), 1):
        song.report(index, steps, latents)
    return latents


def _solver(song: Song, noise: SeededNoise) -> Solver:
    omega = song.options.omega_scale
    if song.options.scheduler_type == "euler":
        return Euler(omega, coupled=song.compat)
    if song.options.scheduler_type == "heun":
        return Heun(omega, coupled=song.compat)
    draw = noise.draw_from_first if song.compat else noise.draw
    return Pingpong(lambda: draw(song.frames))
