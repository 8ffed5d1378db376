"""What the tasks work on: one batch of songs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from training.model import ACEStepTransformer2DModel
from training.sampling.conditions import Conditions
from training.sampling.noise import SeededNoise
from training.sampling.options import SamplingOptions
from training.sampling.velocity import GuidedVelocity


@dataclass(frozen=True)
class Step:
    """A step that is done.

    Attributes:
        index: from 1.
        steps: of the whole run.
        latents: float32 [B, C, bins, T] after it; not to be changed.
    """

    index: int
    steps: int
    latents: Tensor


@dataclass(frozen=True)
class SamplingJob:
    """A batch of songs to sample.

    Attributes:
        transformer: the model.
        conditions: what to generate; of an edit, what the source is.
        options: how.
        frames: latent frames of the result, of tasks with a source those of the source.
        seeds: one an item.
        retake_seeds: one an item, for the second noise.
        source: float32 latents [B, C, bins, frames] of tasks with a source.
        target: of an edit, what the source is to become.
        compat: see `Sampler.generate_latents`.
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
    compat: bool = False
    on_step: Callable[[Step], None] | None = None

    def noise(self) -> SeededNoise:
        """A fresh start of the songs' own noise."""
        return self._seeded(self.seeds)

    def retake_noise(self) -> SeededNoise:
        """A fresh start of the second noise."""
        return self._seeded(self.retake_seeds)

    def velocity(self, steps: int, frames: int) -> GuidedVelocity:
        """The guided velocity of latents of `frames` over a run of `steps`."""
        return GuidedVelocity(self.transformer, self.conditions, self.options, steps, frames, self.compat)

    def report(self, index: int, steps: int, latents: Tensor) -> None:
        """Tell the caller that a step is done."""
        if self.on_step:
            self.on_step(Step(index, steps, latents))

    def _seeded(self, seeds: Sequence[int]) -> SeededNoise:
        config = self.transformer.config
        return SeededNoise(seeds, (config["in_channels"], config["max_height"]), self.conditions.text.device)
