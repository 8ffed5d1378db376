"""Local functions on long signals, one window at a time: memory depends on the window, not on the length."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Frames `start..stop` are the output; `low..high` adds the context that they depend on."""

    low: int
    start: int
    stop: int
    high: int


def spans(frames: int, window: int, before: int, after: int) -> Iterator[Span]:
    """Windows that tile `frames`, each with up to `before` and `after` frames of context.

    Raises:
        ValueError: the window or the signal has no frame.
    """
    if frames < 1 or window < 1:
        raise ValueError(f"{frames} frames in windows of {window}: both need at least one frame")
    for start in range(0, frames, window):
        stop = min(start + window, frames)
        yield Span(max(0, start - before), start, stop, min(frames, stop + after))


def windowed(
    function: Callable[[Tensor], Tensor],
    signal: Tensor,
    *,
    window: int,
    reach: int,
    columns: int = 1,
    fade: int = 0,
) -> Tensor:
    """`function(signal)`, computed in windows and equal to it up to rounding.

    Args:
        function: maps [..., frames * columns] to [..., frames * any factor]; no output frame may depend on an input
            frame more than `reach` away.
        signal: [..., frames * columns].
        window: frames per window, not counting the context.
        reach: frames of context on each side.
        columns: elements of the signal's last axis per frame.
        fade: frames of cross-fade from one window to the next. Both are exact there; in half precision they differ by
            rounding, which would be audible as a step at a hard seam.
    """
    frames = signal.shape[-1] // columns
    result = signal
    for low, start, stop, high in spans(frames, window, reach + fade, reach):
        piece = function(signal[..., low * columns : high * columns])
        factor = piece.shape[-1] // (high - low)
        if start == 0:
            result = piece.new_empty(*piece.shape[:-1], frames * factor)
        seam = max(start - fade, 0)
        faded = (start - seam) * factor
        ramp = (torch.arange(faded, device=piece.device) + 0.5) / max(faded, 1)
        result[..., seam * factor : start * factor].lerp_(
            piece[..., (seam - low) * factor : (start - low) * factor], ramp.to(piece.dtype)
        )
        result[..., start * factor : stop * factor] = piece[..., (start - low) * factor : (stop - low) * factor]
    return result
