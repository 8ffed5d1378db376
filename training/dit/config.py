"""What a training run is asked for; the presets of the paper and of common cards."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from training.data import DataConfig
from training.dit.objective import ObjectiveConfig
from training.dit.previews import PreviewsConfig
from training.run.base_trainer import BaseTrainConfig
from training.run.optimizer import OptimizerConfig
from training.run.parallel import Sharing


class LoraConfig(BaseModel):
    """Adapters to train in place of the weights.

    Attributes:
        rank: of the two factors.
        alpha: the adapter weighs alpha / rank.
        targets: names of the layers that get one.
        frozen_precision: of the weights that are not trained; `bfloat16` halves them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(64, ge=1)
    alpha: float = Field(64.0, gt=0)
    frozen_precision: Literal["float32", "bfloat16"] = "float32"
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "linear_q", "linear_k", "linear_v")


class TrainConfig(BaseTrainConfig):
    """A run of `songmill train dit`; `seed` is that of weights, noise and dropout, the order of songs has its own.

    Attributes:
        data: shards and how they are batched.
        checkpoint: released-layout folder to go on from; None trains from random weights.
        model: config of the transformer where there is no checkpoint; what is left out is the released size.
        objective: loss and dropouts.
        optimizer: AdamW.
        lora: train adapters instead of the weights.
        accumulation: batches a step.
        precision: of the forward pass; the trained weights stay in float32.
        gradient_checkpointing: compute activations twice to keep fewer.
        compile: compile the transformer's blocks.
        sharing: among several workers: `copies` of the model (DDP), or `shards` of it (FSDP2) for one too large.
        ema: decay of the averaged weights; None keeps none.
        samples: songs to hear on the way; None is none.
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
    sharing: Sharing = "copies"
    ema: float | None = Field(None, gt=0, lt=1)
    samples: PreviewsConfig | None = None
