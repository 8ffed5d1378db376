"""What a run of `songmill train autoencoder` is asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.nets.codec.codec import AUTOENCODER
from training.run.base_trainer import BaseTrainConfig
from training.run.optimizer import OptimizerConfig

PhaseName = Literal["full", "middle", "head"]
PHASES: tuple[PhaseName, ...] = ("full", "middle", "head")

# What the stage `latents` and the released transformer want of a codec.
_FIXED = {"in_channels": 2, "latent_channels": 8}
_STAGES = 4  # three halvings between them: compression 8


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhaseConfig(_Config):
    """One phase.

    Attributes:
        steps: optimizer steps; 0 leaves the phase out.
        excerpt_s: length of what is taken of a song at once.
        batch_size: excerpts.
        optimizer: AdamW; its warm-up and decay are those of the phase.
    """

    steps: int = Field(0, ge=0)
    excerpt_s: float = Field(3.0, ge=0.2)
    batch_size: int = Field(16, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=500)


class CropsConfig(_Config):
    """Which songs, and how excerpts are drawn from them.

    Attributes:
        datasets: folders that `songmill curate` wrote. A track that stands in two of them counts once.
        where: SQL condition on the columns of the shards.
        excerpts_per_visit: taken of a song before another one is decoded.
        validation_share: of the songs, held out. Which ones follows from their audio alone.
        validation_s: length of the excerpts that are validated on.
        validation_excerpts: how many, spread evenly over the songs held out.
    """

    datasets: tuple[Path, ...] = Field(min_length=1)
    where: str | None = None
    excerpts_per_visit: int = Field(16, ge=1)
    validation_share: float = Field(0.02, ge=0, lt=1)
    validation_s: float = Field(6.0, ge=0.2)
    validation_excerpts: int = Field(32, ge=1)


class ReconstructionConfig(_Config):
    """Distance of spectrograms, both on the codec's scale of -1 to 1.

    Attributes:
        mse: weight of the mean squared error.
        l1: weight of the mean absolute error.
    """

    mse: float = Field(1.0, ge=0)
    l1: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.mse + self.l1:
            raise ValueError("one of mse and l1 has to be more than 0")
        return self


class AdversarialConfig(_Config):
    """The patch GAN of the phase `head`.

    Attributes:
        weight: of the adversarial part; 0 leaves it out.
        adaptive: scale it so that its gradient in the last layer is as large as the reconstruction's (Esser et al.,
            "Taming Transformers", 2021).
        loss: `hinge` or `least_squares`.
        channels: of the discriminator's first layer.
        layers: of the discriminator that halve the spectrogram.
        lr: of the discriminator.
    """

    weight: float = Field(0.5, ge=0)
    adaptive: bool = True
    loss: Literal["hinge", "least_squares"] = "hinge"
    channels: int = Field(64, ge=1)
    layers: int = Field(3, ge=1, le=5)
    lr: float = Field(1e-4, gt=0)


class Moment(NamedTuple):
    """Where in the phases a step lies.

    Attributes:
        name: of the phase.
        phase: its settings.
        step: of the phase, counted from 0.
    """

    name: PhaseName
    phase: PhaseConfig
    step: int


class AutoencoderTrainConfig(BaseTrainConfig):
    """A run of `songmill train autoencoder`.

    Attributes:
        kind: tells it from other runs.
        data: songs.
        checkpoint: folder with `music_dcae_f8c8/` to go on from; None trains from random weights.
        model: arguments of diffusers' `AutoencoderDC` where there is no checkpoint; what is left out is as released.
        linear_start: begin as the best linear codec of some of the songs (see `training.autoencoder.linear_start`), for
            autoencoders without layers in the first stage, with `upsample_block_type: pixel_shuffle`.
        full: short excerpts, all weights.
        middle: long excerpts, the deepest stages and what lies between them.
        head: short excerpts, the decoder's last layers against a discriminator.
        reconstruction: loss of all phases.
        adversarial: loss of `head`.
        precision: of the forward pass; the weights stay in float32.
        steps: of all phases together, or fewer to stop before.
    """

    kind: Literal["autoencoder"] = "autoencoder"
    data: CropsConfig
    checkpoint: Path | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    linear_start: bool = False
    full: PhaseConfig = PhaseConfig()
    middle: PhaseConfig = PhaseConfig()
    head: PhaseConfig = PhaseConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    precision: Literal["float32", "bfloat16"] = "float32"
    steps: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _all_steps(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or settings.get("steps") is not None:
            return settings
        phases = [settings.get(name) or {} for name in PHASES]
        planned = [phase.steps if isinstance(phase, PhaseConfig) else phase.get("steps", 0) for phase in phases]
        return {**settings, "steps": sum(planned)} if all(isinstance(steps, int) for steps in planned) else settings

    @model_validator(mode="after")
    def _check(self) -> Self:
        planned = sum(phase.steps for _, phase in self.phases())
        if not planned:
            raise ValueError("no phase has steps: give a preset, or full.steps")
        if not 0 < self.steps <= planned:
            raise ValueError(f"the phases have {planned} steps in all")
        if self.checkpoint and (self.model or self.linear_start):
            raise ValueError(
                "a checkpoint has its own sizes and weights: leave model, linear_start and --size out, or undo a "
                "preset's with --set model={} --set linear_start=false"
            )
        _check_sizes({**AUTOENCODER, **self.model})
        return self

    def phases(self) -> Iterator[tuple[PhaseName, PhaseConfig]]:
        """In their order."""
        return ((name, getattr(self, name)) for name in PHASES)

    def moment(self, step: int) -> Moment:
        """The phase that a step belongs to; of the step after the last one, the last phase."""
        left = min(step, sum(phase.steps for _, phase in self.phases()) - 1)
        for name, phase in self.phases():
            if left < phase.steps:
                return Moment(name, phase, left)
            left -= phase.steps
        raise AssertionError  # `steps` is not more than they have


def _check_sizes(model: dict[str, Any]) -> None:
    for name, value in _FIXED.items():
        if model[name] != value:
            raise ValueError(f"model.{name} has to be {value}")
    for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
        if len(model[name]) != _STAGES:
            raise ValueError(f"model.{name} has to name {_STAGES} stages, for a compression of 8")
