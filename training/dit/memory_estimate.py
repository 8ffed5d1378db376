"""Memory of a training step: estimated before a run, measured during it.

The estimate takes a step with PyTorch's fake tensors, which have shapes but no data. So it takes seconds for billions
of weights, on a machine that could not hold them.
"""

import resource
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from schemas.columns import LATENT_FRAME
from training.data import Widths
from training.dit.config import TrainConfig
from training.model import ACEStepTransformer2DModel


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of a step on each device, without the process and its libraries.

    Attributes:
        parameters: number of parameters of the model, adapters included.
        trained: number of trained parameters.
        weights: bytes of the weights and their moving average.
        gradients: bytes of the gradients.
        optimizer: bytes of AdamW's two moments.
        activations: bytes of activations kept for the backward pass, and of temporaries.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations


class PeakMemory:
    """Peak memory of training so far: GPU memory, or main memory beyond what the process had when this was created.

    Args:
        device: device that is trained on.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._before = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._before = psutil.Process().memory_info().rss

    @property
    def peak(self) -> int:
        """Peak memory in bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        unit = 1 if sys.platform == "darwin" else 1024
        return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - self._before)


def estimate(
    config: TrainConfig, transformer: ACEStepTransformer2DModel, widths: Widths, frames: int, lyric_ids: int
) -> MemoryEstimate:
    """Estimate the memory of a step on the largest batch.

    Args:
        config: settings of the run.
        transformer: the model to train, on the meta device; its weights are replaced.
        widths: widths of the songs' features.
        frames: latent frames of the longest song.
        lyric_ids: token ids of the longest lyrics.
    """
    with FakeTensorMode():
        _leave_meta(transformer)
        parameters = list(transformer.parameters())
        trained = [weight for weight in parameters if weight.requires_grad]
        inputs = _largest_batch(config, widths, frames, lyric_ids)
        with _Allocations(excluding=[*parameters, *inputs]) as allocations:
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
                output = transformer.train()(*inputs, return_projections=bool(config.data.ssl))
                heads = sum(projected.float().square().mean() for _, projected in output.projections)
                loss = output.sample.float().square().mean() + heads
            loss.backward()
    gradients = _bytes(trained)
    return MemoryEstimate(
        parameters=sum(weight.numel() for weight in parameters),
        trained=sum(weight.numel() for weight in trained),
        weights=_bytes(parameters) + (gradients if config.ema else 0),
        gradients=gradients,
        optimizer=2 * gradients,
        activations=max(0, allocations.peak - gradients),
    )


class _Allocations(TorchDispatchMode):
    """Tracks the bytes of all tensors allocated while it is active, and their peak."""

    def __init__(self, excluding: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in excluding}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # two of three calls; answered here, they cost half the time
            return FakeTensor.__torch_dispatch__(func, types, args)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _leave_meta(model: nn.Module) -> None:
    """Replace meta tensors by fake CPU tensors, which autocast accepts."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=weight.requires_grad)


def _largest_batch(config: TrainConfig, widths: Widths, frames: int, lyric_ids: int) -> tuple[Tensor, ...]:
    """Inputs of the transformer, as large as `ShardStream` allows."""
    data = config.data
    length = min(frames, data.max_frames_per_song)
    lyrics = max(1, min(lyric_ids, data.max_lyric_ids))
    songs = min(data.batch_size, data.max_frames // length) if data.max_frames else data.batch_size
    return (
        torch.empty(songs, *LATENT_FRAME, length),
        torch.ones(songs, length, dtype=torch.bool),
        torch.empty(songs, data.max_text_tokens, widths.text),
        torch.ones(songs, data.max_text_tokens, dtype=torch.bool),
        torch.empty(songs, widths.speaker),
        torch.zeros(songs, lyrics, dtype=torch.long),
        torch.ones(songs, lyrics, dtype=torch.bool),
        torch.empty(songs),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
