"""How the processes of a run share a model: copies whose gradients are averaged, or each a part of every weight."""

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
    """The model to call, on its device; `torch.distributed` tells among how many.

    `copies` is PyTorch's `DistributedDataParallel`. `shards` is its FSDP2 (`fully_shard`): weights, gradients and the
    optimizer's moments are spread over the processes, and a block's weights are whole only while it is computed. It
    changes the model in place.

    Args:
        model: to share.
        blocks: of it, that `shards` gathers one by one.
        sharing: see above; alone, a process has all of the model either way.
        device: of this process.
        methods: of the model that are called besides `forward`.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return model
    if sharing == "copies":
        return DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device])
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    # The objective changes no output in place, which is what FSDP2 warns of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(model, method)
    return model


@contextmanager
def gradient_sync(model: nn.Module, last: bool) -> Iterator[None]:
    """The way back within: the processes share gradients at the last batch of a step alone."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def to_full_tensor(value: Tensor) -> Tensor:
    """A tensor that may be spread over processes, in one piece on each."""
    return value.full_tensor() if isinstance(value, DTensor) else value
