"""AdamW and its learning rate schedule."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn


class OptimizerConfig(BaseModel):
    """AdamW and its learning rate; the defaults are the paper's (arXiv 2506.00045, table 4).

    Attributes:
        lr: learning rate after the warm-up.
        betas: AdamW's betas.
        weight_decay: AdamW's weight decay.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        decay: schedule after the warm-up: `constant`, or `cosine` down to 0 at the last step.
        clip: largest gradient norm; larger gradients are scaled down to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.8, 0.9)
    weight_decay: float = Field(1e-2, ge=0)
    warmup_steps: int = Field(4000, ge=0)
    decay: Literal["constant", "cosine"] = "constant"
    clip: float = Field(0.5, gt=0)


def build_optimizer(weights: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the weights that require gradients."""
    trained = [weight for weight in weights if weight.requires_grad]
    return torch.optim.AdamW(trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimizerConfig) -> None:
    """Set the learning rate of a step, from 0; see `learning_rate`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, steps, config)


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Learning rate of a step, from 0: a linear warm-up, then constant or a cosine down to 0 at `steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2
