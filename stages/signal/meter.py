"""Where bars begin: three or four beats to the bar, and which beat is the first."""

from dataclasses import dataclass

import numpy as np

DEFAULT_METER = 4
_MIN_BARS = 4
_TRIPLE_MARGIN = 0.1  # by how much three must beat four: most songs are in four


@dataclass(frozen=True)
class Meter:
    """Beats per bar, and the times of the downbeats in seconds."""

    time_signature: int
    downbeats_s: np.ndarray


def find_meter(beats_s: np.ndarray, accents: np.ndarray) -> Meter:
    """Meter from one accent per beat: the more that starts there (bass, a new chord), the larger.

    Bars repeat, so the accents resemble themselves one and two bars later: the bar length is the one (3 or 4) with the
    larger mean autocorrelation at these lags. The downbeat is the position in the bar with the largest mean accent.
    With less than four bars' worth of beats the meter is four.
    """
    meter = DEFAULT_METER
    if (
        len(beats_s) >= _MIN_BARS * DEFAULT_METER
        and _periodicity(accents, 3) > _periodicity(accents, 4) + _TRIPLE_MARGIN
    ):
        meter = 3
    phase = max(range(min(meter, len(beats_s))), key=lambda first: accents[first::meter].mean())
    return Meter(meter, beats_s[phase::meter])


def meter_from_downbeats(beats_s: np.ndarray, downbeats_s: np.ndarray) -> int | None:
    """The most common number of beats from one downbeat to the next, None for fewer than two downbeats."""
    if len(downbeats_s) < 2:
        return None
    counts = np.diff(np.searchsorted(beats_s, downbeats_s))
    return int(np.bincount(counts).argmax())


def _periodicity(accents: np.ndarray, lag: int) -> float:
    """Mean autocorrelation one and two bars of `lag` beats later."""
    centred = accents - accents.mean()
    power = float(np.mean(centred**2))
    if power == 0:
        return 0.0
    return float(np.mean([np.mean(centred[n:] * centred[:-n]) for n in (lag, 2 * lag)])) / power
