"""What a training run is asked for; the presets of the paper and of common cards."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from training.data import DataConfig
from training.objective import ObjectiveConfig


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OptimizerConfig(_Config):
    """AdamW and its learning rate; the defaults are the paper's (arXiv 2506.00045, table 4).

    Attributes:
        lr: learning rate after the warm-up.
        betas: of AdamW.
        weight_decay: of AdamW.
        warmup_steps: over which the learning rate rises from 0.
        decay: how it goes on: `constant`, or `cosine` down to 0 at the last step.
        clip: largest norm of the gradient.
    """

    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.8, 0.9)
    weight_decay: float = Field(1e-2, ge=0)
    warmup_steps: int = Field(4000, ge=0)
    decay: Literal["constant", "cosine"] = "constant"
    clip: float = Field(0.5, gt=0)


class LoraConfig(_Config):
    """Adapters to train in place of the weights.

    Attributes:
        rank: of the two factors.
        alpha: the adapter weighs alpha / rank.
        targets: names of the layers that get one.
        frozen_precision: of the weights that are not trained; `bfloat16` halves them.
    """

    rank: int = Field(64, ge=1)
    alpha: float = Field(64.0, gt=0)
    frozen_precision: Literal["float32", "bfloat16"] = "float32"
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "linear_q", "linear_k", "linear_v")


class TrainConfig(_Config):
    """A run of `songmill train dit`.

    Attributes:
        data: shards and how they are batched.
        checkpoint: released-layout folder to go on from; None trains from random weights.
        model: config of the transformer where there is no checkpoint; what is left out is the released size.
        objective: loss and dropouts.
        optimizer: AdamW.
        lora: train adapters instead of the weights.
        steps: optimizer steps.
        accumulation: batches a step.
        precision: of the forward pass; the trained weights stay in float32.
        gradient_checkpointing: compute activations twice to keep fewer.
        compile: compile the transformer's blocks.
        ema: decay of the averaged weights; None keeps none.
        seed: of weights, noise and dropout; the order of songs has its own in `data`.
        log_every: steps.
        validate_every: steps; 0 is never.
        save_every: steps.
        keep: checkpoints; older ones are deleted.
    """

    data: DataConfig
    checkpoint: Path | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = None
    steps: int = Field(460_000, ge=1)
    accumulation: int = Field(1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    ema: float | None = Field(None, gt=0, lt=1)
    seed: int = 0
    log_every: int = Field(10, ge=1)
    validate_every: int = Field(1000, ge=0)
    save_every: int = Field(1000, ge=1)
    keep: int = Field(3, ge=1)
