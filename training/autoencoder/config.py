"""Settings of a run of `songmill train autoencoder`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.columns import LATENT_CHANNELS
from schemas.storage.location import Place
from stages.nets.codec.codec import AUTOENCODER
from training.run.base_trainer import BaseTrainConfig
from training.run.optimizer import OptimizerConfig

PhaseName = Literal["full", "middle", "head"]
PHASES: tuple[PhaseName, ...] = ("full", "middle", "head")

# Required by the stage `latents` and the released transformer.
_FIXED = {"in_channels": 2, "latent_channels": LATENT_CHANNELS}
_STAGES = 4  # with three halvings between them: compression 8


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhaseConfig(_Config):
    """Settings of one phase.

    Attributes:
        steps: optimizer steps; 0 skips the phase.
        excerpt_s: length of a crop in seconds.
        batch_size: crops per batch.
        optimizer: AdamW; its warm-up and decay run over the phase.
    """

    steps: int = Field(0, ge=0)
    excerpt_s: float = Field(3.0, ge=0.2)
    batch_size: int = Field(16, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig(warmup_steps=500)


class CropsConfig(_Config):
    """Which songs to use, and how to draw crops from them.

    Attributes:
        datasets: folders or URLs of buckets that `songmill curate` wrote. A track in several of them counts once.
        where: SQL condition on the shards' columns.
        excerpts_per_visit: crops drawn from a song before the next song is decoded.
        validation_share: share of the songs to hold out; which ones depends only on their own audio.
        validation_s: length of the validation crops in seconds.
        validation_excerpts: number of validation crops, spread evenly over the held-out songs.
    """

    datasets: tuple[Place, ...] = Field(min_length=1)
    where: str | None = None
    excerpts_per_visit: int = Field(16, ge=1)
    validation_share: float = Field(0.02, ge=0, lt=1)
    validation_s: float = Field(6.0, ge=0.2)
    validation_excerpts: int = Field(32, ge=1)


class ReconstructionConfig(_Config):
    """Reconstruction loss between spectrograms on the codec's scale of -1 to 1.

    Attributes:
        mse: weight of the mean squared error.
        l1: weight of the mean absolute error.
    """

    mse: float = Field(1.0, ge=0)
    l1: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.mse + self.l1:
            raise ValueError("mse or l1 must be greater than 0")
        return self


class AdversarialConfig(_Config):
    """The patch GAN of the phase `head`.

    Attributes:
        weight: weight of the adversarial loss; 0 switches it off.
        adaptive: scale it so that its gradient in the last layer is as large as that of the reconstruction loss (Esser
            et al., "Taming Transformers", 2021).
        loss: `hinge` or `least_squares`.
        channels: channels of the discriminator's first layer.
        layers: number of layers of the discriminator that halve the spectrogram.
        lr: learning rate of the discriminator.
    """

    weight: float = Field(0.5, ge=0)
    adaptive: bool = True
    loss: Literal["hinge", "least_squares"] = "hinge"
    channels: int = Field(64, ge=1)
    layers: int = Field(3, ge=1, le=5)
    lr: float = Field(1e-4, gt=0)


class Moment(NamedTuple):
    """The phase that a step belongs to.

    Attributes:
        name: name of the phase.
        phase: settings of the phase.
        step: step within the phase, from 0.
    """

    name: PhaseName
    phase: PhaseConfig
    step: int


class AutoencoderTrainConfig(BaseTrainConfig):
    """A run of `songmill train autoencoder`.

    Attributes:
        kind: kind of the run, as stored in its `config.json`.
        data: songs and crops.
        checkpoint: folder with `music_dcae_f8c8/` to start from; None starts from random weights.
        model: arguments of diffusers' `AutoencoderDC` for a new model; missing ones take the released values.
        linear_start: initialise as the best linear codec of some of the songs (see
            `training.autoencoder.linear_start`); needs an autoencoder without layers in the first stage and with
            `upsample_block_type: pixel_shuffle`.
        full: phase 1: short crops, all weights.
        middle: phase 2: long crops, only the deepest stages and the latent layers between them.
        head: phase 3: short crops, only the decoder's last layers, against a discriminator.
        reconstruction: loss of all phases.
        adversarial: additional loss of `head`.
        precision: dtype of the forward pass; the weights stay in float32.
        steps: steps of all phases together, or fewer to stop early.
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
            raise ValueError("no phase has any steps: choose a preset, or set full.steps")
        if not 0 < self.steps <= planned:
            raise ValueError(f"the phases have {planned} steps in total")
        if self.checkpoint and (self.model or self.linear_start):
            raise ValueError(
                "a checkpoint has its own sizes and weights: leave out model, linear_start and --size, or undo a "
                "preset's with --set model={} --set linear_start=false"
            )
        _check_sizes({**AUTOENCODER, **self.model})
        return self

    def phases(self) -> Iterator[tuple[PhaseName, PhaseConfig]]:
        """Name and settings of each phase, in order."""
        return ((name, getattr(self, name)) for name in PHASES)

    def moment(self, step: int) -> Moment:
        """The phase of a step; beyond the last step, the last step of the last phase."""
        left = min(step, sum(phase.steps for _, phase in self.phases()) - 1)
        for name, phase in self.phases():
            if left < phase.steps:
                return Moment(name, phase, left)
            left -= phase.steps
        raise AssertionError  # `left` is below their sum


def _check_sizes(model: dict[str, Any]) -> None:
    for name, value in _FIXED.items():
        if model[name] != value:
            raise ValueError(f"model.{name} must be {value}")
    for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
        if len(model[name]) != _STAGES:
            raise ValueError(f"model.{name} must list {_STAGES} stages, for a compression of 8")
