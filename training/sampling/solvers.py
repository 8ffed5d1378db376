"""Solvers of the flow's differential equation, from noise to latents."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

# Guided velocity [B, C, bins, T] of latents, given the number of the evaluation (from 0) and sigma.
Velocity = Callable[[Tensor, int, float], Tensor]

_ITEM_DIMS = (1, 2, 3)


class Solver(Protocol):
    """A solver of the flow."""

    def __call__(self, x: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Iterator[Tensor]:
        """Solve from `x` [B, C, bins, T] at `sigmas[0]` down to 0; yields the latents after every step."""


class Euler:
    """One straight line per step.

    Args:
        omega: scales each step about its mean: by 1 at 0, by up to 1.1 above it and down to 0.9 below.
        mean_dims: dimensions of [B, C, bins, T] that the mean runs over; by default those of one item.
    """

    def __init__(self, omega: float, mean_dims: Sequence[int] = _ITEM_DIMS) -> None:
        self._scaled = _Scaled(omega, mean_dims)

    def __call__(self, x: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Iterator[Tensor]:
        """See `Solver`."""
        for index, (sigma, following) in enumerate(pairwise(sigmas)):
            x = x + self._scaled((following - sigma) * velocity(x, index, sigma))
            yield x


class Heun:
    """Euler's step as a predictor, then the mean of the velocities at both ends; the last step is Euler's.

    Args:
        omega: see `Euler`.
        mean_dims: see `Euler`.
    """

    def __init__(self, omega: float, mean_dims: Sequence[int] = _ITEM_DIMS) -> None:
        self._scaled = _Scaled(omega, mean_dims)

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
    """A stochastic solver: denoises fully, then adds fresh noise up to the next level.

    Args:
        fresh_noise: draws noise [B, C, bins, T].
    """

    def __init__(self, fresh_noise: Callable[[], Tensor]) -> None:
        self._fresh_noise = fresh_noise

    def __call__(self, x: Tensor, sigmas: Sequence[float], velocity: Velocity) -> Iterator[Tensor]:
        """See `Solver`."""
        for index, (sigma, following) in enumerate(pairwise(sigmas)):
            denoised = x - sigma * velocity(x, index, sigma)
            x = (1 - following) * denoised + following * self._fresh_noise()
            yield x


class _Scaled:
    """Scales a step about its mean, which is kept."""

    def __init__(self, omega: float, mean_dims: Sequence[int]) -> None:
        self._factor = 1 + 0.1 * math.tanh(omega / 20)
        self._mean_dims = tuple(mean_dims)

    def __call__(self, step: Tensor) -> Tensor:
        mean = step.mean(self._mean_dims, keepdim=True)
        return torch.lerp(mean, step, self._factor)
