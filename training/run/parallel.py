"""Data parallelism: copies of the model with averaged gradients (DDP), or sharded weights (FSDP2)."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

Sharing = Literal["copies", "shards"]


def parallelize(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    sharing: Sharing,
    device: torch.device,
    methods: Sequence[str] = (),
) -> nn.Module:
    """Share a model among the processes of `torch.distributed`; returns the module to call.

    `copies` is PyTorch's `DistributedDataParallel`. `shards` is its FSDP2 (`fully_shard`): weights, gradients and
    optimizer state are sharded over the processes, and a block's weights are gathered only while it is computed. It
    changes the model in place. A single process keeps the model as it is.

    Args:
        model: the model, on its device.
        blocks: submodules that `shards` gathers one by one.
        sharing: `copies` or `shards`.
        device: device of this process.
        methods: methods of the model that are called besides `forward`.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return model
    if sharing == "copies":
        return DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device])
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    # FSDP2 warns of outputs that are changed in place; the objective changes none.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(model, method)
    return model


@contextmanager
def gradient_sync(model: nn.Module, last: bool) -> Iterator[None]:
    """Context for the backward pass: gradients are synchronised only for the last batch of a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def to_full_tensor(value: Tensor) -> Tensor:
    """The whole tensor on every process, whether it is sharded or not."""
    return value.full_tensor() if isinstance(value, DTensor) else value
