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
    """A straight line a step: see `_Scaled` for the arguments."""

    def __init__(self, omega: float, coupled: bool = False) -> None:
        self._scaled = _Scaled(omega, coupled)

    def __call__(self, x: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Iterator[Tensor]:
        """See `Solver`."""
        for index, (sigma, following) in enumerate(pairwise(sigmas)):
            x = x + self._scaled((following - sigma) * velocity(x, index, sigma))
            yield x


class Heun:
    """A predictor and the mean of the velocities at both ends; the last step is plain."""

    def __init__(self, omega: float, coupled: bool = False) -> None:
        self._scaled = _Scaled(omega, coupled)

    def __call__(self, x: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Iterator[Tensor]:
        """See `Solver`."""
        index = 0
        for sigma, following in pairwise(sigmas):
            slope = velocity(x, index, sigma)
            if following > 0:
                predicted = x + self._scaled((following - sigma) * slope)
                slope = (slope + velocity(predicted, index + 1, following)) / 2
            x = x + self._scaled((following - sigma) * slope)
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


class _Scaled:
    """A step whose mean is kept while the rest is scaled: by 0.9 to 1.1, 1 at an `omega` of 0.

    `coupled` takes the mean over the whole batch, so that an item depends on its neighbours, as the reference does.
    """

    def __init__(self, omega: float, coupled: bool) -> None:
        self._factor = 1 + 0.1 * math.tanh(omega / 20)
        self._dims = (0, 1, 2, 3) if coupled else (1, 2, 3)

    def __call__(self, step: Tensor) -> Tensor:
        mean = step.mean(self._dims, keepdim=True)
        return torch.lerp(mean, step, self._factor)
