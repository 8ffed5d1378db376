"""How computing time grows with duration."""

import math
from collections.abc import Sequence


def exponent(durations: Sequence[float], seconds: Sequence[float]) -> float | None:
    """The exponent p in seconds ~ duration ** p, by least squares on logarithms; None for fewer than two durations."""
    if len(set(durations)) < 2:
        return None
    x, y = ([math.log(value) for value in values] for values in (durations, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return rise / sum((a - mean_x) ** 2 for a in x)
