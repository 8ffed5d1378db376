"""A batch of songs to sample, as the tasks receive it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from training.model import ACEStepTransformer2DModel
from training.sampling.conditions import Conditions
from training.sampling.noise import SeededNoise
from training.sampling.options import SamplingOptions
from training.sampling.solvers import Euler, Heun, Pingpong, Solver
from training.sampling.velocity import GuidedVelocity
from training.sampling.window import Extension


@dataclass(frozen=True)
class Step:
    """A completed step.

    Attributes:
        index: number of the step, from 1.
        steps: total number of steps.
        latents: float32 [B, C, bins, T] after the step; read-only.
    """

    index: int
    steps: int
    latents: Tensor


@dataclass(frozen=True)
class SamplingJob:
    """A batch of songs to sample.

    Attributes:
        transformer: the model.
        conditions: what to generate; for an edit, what the source is.
        options: task and sampling options.
        frames: latent frames of the source, if there is one, else of the result.
        seeds: one per song.
        retake_seeds: one per song, for the second noise.
        source: float32 latents [B, C, bins, frames] of tasks that start from a song.
        target: for an edit, what the source is to become.
        on_step: called after every step.
    """

    transformer: ACEStepTransformer2DModel
    conditions: Conditions
    options: SamplingOptions
    frames: int
    seeds: Sequence[int]
    retake_seeds: Sequence[int]
    source: Tensor | None = None
    target: Conditions | None = None
    on_step: Callable[[Step], None] | None = None

    def noise(self) -> SeededNoise:
        """The songs' noise, from its beginning."""
        return self._seeded(self.seeds)

    def retake_noise(self) -> SeededNoise:
        """The second noise, from its beginning."""
        return self._seeded(self.retake_seeds)

    def velocity(self, steps: int, frames: int) -> GuidedVelocity:
        """The guided velocity of latents with `frames` frames in a run of `steps` steps."""
        return GuidedVelocity(self.transformer, self.conditions, self.options, steps, frames)

    def solver(self, noise: SeededNoise) -> Solver:
        """The solver that the options name; pingpong draws its fresh noise from `noise`."""
        if self.options.scheduler_type == "euler":
            return Euler(self.options.omega_scale)
        if self.options.scheduler_type == "heun":
            return Heun(self.options.omega_scale)
        return Pingpong(lambda: noise.draw(self.frames))

    def extension(self) -> Extension:
        """How many frames to add to each side of the source.

        Raises:
            SamplingError: the options ask for no new frames, or for too many.
        """
        return Extension.of(self.options, self.frames)

    def report(self, index: int, steps: int, latents: Tensor) -> None:
        """Report a completed step to `on_step`."""
        if self.on_step:
            self.on_step(Step(index, steps, latents))

    def _seeded(self, seeds: Sequence[int]) -> SeededNoise:
        return SeededNoise(seeds, self._shape, self.conditions.text.device)

    @property
    def _shape(self) -> tuple[int, int]:
        """Channels and bins of the latents."""
        config = self.transformer.config
        return config["in_channels"], config["max_height"]
