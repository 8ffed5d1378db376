"""Solvers of the flow's differential equation, from noise to latents."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

# Evaluates the guided velocity of latents at the `index`-th evaluation, sigma as given.
Velocity = Callable[[Tensor, int, float], Tensor]


class Solver(Protocol):
    """Yields the latents [B, C, bins, T] after every step."""

    def __call__(self, x: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Iterator[Tensor]:
        """Solve from `x` at `sigmas[0]` to `sigmas[-1]`, 0."""


class Euler:
    """A straight line a step, its mean damped: see `_Damping` for the arguments."""

    def __init__(self, omega: float, coupled: bool = False) -> None:
        self._damped = _Damping(omega, coupled)

    def __call__(self, x: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Iterator[Tensor]:
        """See `Solver`."""
        for index, (sigma, following) in enumerate(pairwise(sigmas)):
            x = x + self._damped((following - sigma) * velocity(x, index, sigma))
            yield x


class Heun:
    """A predictor and the mean of the velocities at both ends; the last step is plain."""

    def __init__(self, omega: float, coupled: bool = False) -> None:
        self._damped = _Damping(omega, coupled)

    def __call__(self, x: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Iterator[Tensor]:
        """See `Solver`."""
        index = 0
        for sigma, following in pairwise(sigmas):
            slope = velocity(x, index, sigma)
            if following > 0:
                predicted = x + self._damped((following - sigma) * slope)
                slope = (slope + velocity(predicted, index + 1, following)) / 2
            x = x + self._damped((following - sigma) * slope)
            index += 2
            yield x


class Pingpong:
    """To the latents and back to the next noise level with fresh noise: a stochastic solver."""

    def __init__(self, fresh_noise: Callable[[], Tensor]) -> None:
        self._fresh_noise = fresh_noise

    def __call__(self, x: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Iterator[Tensor]:
        """See `Solver`."""
        for index, (sigma, following) in enumerate(pairwise(sigmas)):
            denoised = x - sigma * velocity(x, index, sigma)
            x = (1 - following) * denoised + following * self._fresh_noise()
            yield x


class _Damping:
    """A step whose mean is kept as it is while the rest is scaled by a factor about 1, which follows `omega`.

    `coupled` takes the mean over the whole batch, so that an item depends on its neighbours, as the reference does.
    """

    def __init__(self, omega: float, coupled: bool) -> None:
        self._factor = 0.9 + 0.2 / (1 + math.exp(-0.1 * omega))
        self._dims = (0, 1, 2, 3) if coupled else (1, 2, 3)

    def __call__(self, step: Tensor) -> Tensor:
        mean = step.mean(self._dims, keepdim=True)
        return torch.lerp(mean, step, self._factor)
