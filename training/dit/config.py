"""Settings of a run of `songmill train dit`."""

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
    """LoRA adapters, trained instead of the model's own weights.

    Attributes:
        rank: rank of the two factors.
        alpha: the adapter's output is scaled by alpha / rank.
        targets: names of the layers that get an adapter.
        frozen_precision: dtype of the frozen weights; `bfloat16` halves their memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(64, ge=1)
    alpha: float = Field(64.0, gt=0)
    frozen_precision: Literal["float32", "bfloat16"] = "float32"
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "linear_q", "linear_k", "linear_v")


class TrainConfig(BaseTrainConfig):
    """A run of `songmill train dit`. `seed` sets weights, noise and dropout; the order of songs has `data.seed`.

    Attributes:
        data: shards and how they are batched.
        checkpoint: folder in the released layout to start from; None starts from random weights.
        model: config of a new transformer, without a checkpoint; missing keys take the released values.
        objective: loss and condition dropout.
        optimizer: AdamW and its learning rate.
        lora: train adapters instead of the weights.
        accumulation: batches per step.
        precision: dtype of the forward pass; the trained weights stay in float32.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        compile: compile the transformer's blocks.
        sharing: how several workers share the model: `copies` (DDP), or `shards` (FSDP2) where it is too large for one.
        ema: decay of the exponential moving average of the weights; None keeps no average.
        samples: songs sampled during training; None samples none.
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
