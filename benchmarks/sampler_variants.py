"""The same guided velocities computed in several ways, in turns in one process, to compare the ways."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from benchmarks import random_model
from benchmarks.sampler_case import Case
from training.dit.flops import synchronize
from training.model import ACEStepTransformer2DModel
from training.sampling import SamplingOptions
from training.sampling.velocity import Branch, BranchedVelocity, Branches
from training.sampling.window import frames_of

_SIGMA = 0.5
_SAMPLER = "as the sampler does it, eager"

_Way = Callable[[], Tensor]


class Variant(BaseModel):
    """One way to compute the two velocities of a guided step; `ratio` is its time relative to that of the first way."""

    model_config = ConfigDict(frozen=True)

    name: str
    seconds: float
    ratio: float


@torch.no_grad()
def compare(case: Case) -> list[Variant]:
    """The fastest time of every way, measured in turns so that other load on the machine affects all alike."""
    device = torch.device(case.device)
    ways = _ways(case, device)
    if case.compiled:
        ways["compiled"] = ways[_SAMPLER]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(20 if device.type == "cuda" else 6):
        for name, way in ways.items():
            with _eager(case.compiled and name != "compiled"):
                seconds[name].append(_timed(way, device))
    fastest = {name: min(values) for name, values in seconds.items()}
    return [Variant(name=name, seconds=s, ratio=s / fastest[_SAMPLER]) for name, s in fastest.items()]


def _ways(case: Case, device: torch.device) -> dict[str, _Way]:
    transformer = random_model.transformer(case.size, device, compiled=case.compiled)
    given = random_model.conditions(transformer.config, device)
    # Without weakened queries, which `decode` would have to be given apart: they cost nothing.
    encoded = Branches(transformer, given, SamplingOptions(use_erg_diffusion=False))
    branches = [encoded.conditional(), encoded.unconditional()]
    frames = frames_of(case.duration)
    latents = torch.randn(1, transformer.config["in_channels"], transformer.config["max_height"], frames, device=device)
    both = BranchedVelocity(transformer, branches, frames)
    each = [BranchedVelocity(transformer, [branch], frames) for branch in branches]
    return {
        _SAMPLER: lambda: torch.cat(list(both.all(latents, _SIGMA))),
        "a call for each branch": lambda: torch.cat([one.first(latents, _SIGMA) for one in each]),
        "conditions prepared at every step": _unprepared(transformer, branches, latents),
    }


def _unprepared(transformer: ACEStepTransformer2DModel, branches: list[Branch], latents: Tensor) -> _Way:
    states, mask = torch.cat([b.states for b in branches]), torch.cat([b.mask for b in branches])
    repeated = latents.repeat(len(branches), 1, 1, 1).to(transformer.dtype)
    frame_mask = mask.new_ones(len(repeated), repeated.shape[-1])
    timestep = latents.new_full((len(repeated),), 1000 * _SIGMA)
    return lambda: transformer.decode(repeated, frame_mask, states, mask, timestep).sample.float()


def _eager(compiled_model: bool) -> AbstractContextManager[object]:
    return torch.compiler.set_stance("force_eager") if compiled_model else nullcontext()


def _timed(way: _Way, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    way()
    synchronize(device)
    return time.perf_counter() - started
