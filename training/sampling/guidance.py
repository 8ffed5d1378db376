"""Guidance: combining conditional and unconditional velocities."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.sampling.options import Guidance, SamplingOptions

_Combine = Callable[[Tensor, Tensor, float], Tensor]

_MOMENTUM = -0.75
_NORM_LIMIT = 2.5
_ZERO_STEPS = 2  # first evaluations, in which CFG-Zero* uses a velocity of zero


@dataclass(frozen=True)
class Interval:
    """The guided evaluations of the model and their scale (Kynkäänniemi et al., arXiv 2404.07724).

    Attributes:
        start: first guided evaluation.
        stop: first evaluation after the interval.
        scale: guidance scale at the start.
        fall: how much the scale has fallen at the last guided evaluation.
    """

    start: int
    stop: int
    scale: float
    fall: float = 0.0

    @classmethod
    def of(cls, options: SamplingOptions, steps: int) -> "Interval":
        """The middle share of `steps`, applied to numbers of evaluations, of which heun has two per step."""
        start = int(steps * (1 - options.guidance_interval) / 2)
        stop = int(steps * (options.guidance_interval / 2 + 0.5))
        fall = (options.guidance_scale - options.min_guidance_scale) * options.guidance_interval_decay
        return cls(start, stop, options.guidance_scale, fall)

    def __contains__(self, index: int) -> bool:
        return self.start <= index < self.stop

    def scale_at(self, index: int) -> float:
        """The guidance scale of evaluation `index`."""
        return self.scale - self.fall * (index - self.start) / max(self.stop - self.start - 1, 1)


class ProjectedGuidance:
    """Adaptive projected guidance (Sadat et al., arXiv 2410.02416); holds the momentum of one run."""

    def __init__(self) -> None:
        self._average: Tensor | float = 0.0

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Velocities [B, C, bins, T] to the guided one; norms and projections are over bins and frames."""
        self._average = conditional - unconditional + _MOMENTUM * self._average
        return conditional + (scale - 1) * _orthogonal(_limited(self._average), conditional)


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598); velocities [B, C, bins, T]."""
    return unconditional + scale * (conditional - unconditional)


def zero_star(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """CFG-Zero* (Fan et al., arXiv 2503.18886): the unconditional velocity is first scaled to
    fit the conditional one.
    """
    product = (conditional * unconditional).sum((1, 2, 3), keepdim=True)
    share = product / (unconditional.square().sum((1, 2, 3), keepdim=True) + 1e-8)
    return classifier_free(conditional, unconditional * share, scale)


def doubly_guided(full: Tensor, text_only: Tensor, unconditional: Tensor, text: float, lyric: float) -> Tensor:
    """Separate scales for the text (against no conditions) and for the lyrics (against the text only)."""
    return (1 - text) * unconditional + (text - lyric) * text_only + lyric * full


class SingleGuidance:
    """Guidance of one of the three kinds, with the scale of its interval."""

    def __init__(self, kind: Guidance, interval: Interval) -> None:
        self._kind = kind
        self._interval = interval
        ways: dict[Guidance, _Combine] = {"apg": ProjectedGuidance(), "cfg": classifier_free, "cfg_star": zero_star}
        self._combine = ways[kind]

    def __call__(self, conditional: Tensor, unconditional: Tensor, index: int) -> Tensor:
        """Velocities [B, C, bins, T] of evaluation `index` to the guided one."""
        if self._kind == "cfg_star" and index < _ZERO_STEPS:
            return torch.zeros_like(conditional)
        return self._combine(conditional, unconditional, self._interval.scale_at(index))


def _limited(difference: Tensor) -> Tensor:
    norm = difference.norm(dim=(-2, -1), keepdim=True)
    return difference * (_NORM_LIMIT / norm).clamp(max=1)


def _orthogonal(difference: Tensor, direction: Tensor) -> Tensor:
    """The part of `difference` orthogonal to `direction`, computed in float64 since it may be a tiny remainder."""
    exact, unit = difference.double(), torch.nn.functional.normalize(direction.double().flatten(-2), dim=-1)
    unit = unit.view_as(exact)
    return (exact - (exact * unit).sum((-2, -1), keepdim=True) * unit).to(difference.dtype)
