"""Labels for the parts of a song, by rules on what was measured about them.

The rules, where "sung" means that there is singing in 30 % of the part or more; if singing was not measured, every part
counts as sung:

- The first and the last part, if unsung or unmeasured, are intro and outro: always in a song that is sung elsewhere,
  otherwise if they are less prominent than the others (3 dB quieter than the median, or shorter than 0.6 of the mean
  length) and their kind never recurs.
- Other unsung parts are "inst", or "break" if 6 dB or more below the median level.
- Of the sung kinds that recur, the loudest is the chorus; a song with one sung kind has none.
- A sung part after the first chorus whose kind never recurs is the bridge, unless it is the last part.
- All other sung parts are verses.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

_SUNG_SHARE = 0.3
_QUIETER_DB = 3.0
_BREAK_DB = 6.0
_SHORT = 0.6  # of the mean length


@dataclass(frozen=True)
class Part:
    """A part of a song, the number of its kind, its level, and its share 0..1 with vocals, None if not measured."""

    start_s: float
    end_s: float
    kind: int
    level_db: float
    vocal_share: float | None

    @property
    def length_s(self) -> float:
        """Seconds from its start to its end."""
        return self.end_s - self.start_s


def label_parts(parts: list[Part]) -> list[str]:
    """One label per part, by the rules above."""
    labels = [_edge(parts, i) or _middle(parts, i) for i in range(len(parts))]
    sung = [i for i, label in enumerate(labels) if label == "verse"]
    chorus = _chorus(parts, sung)
    first_chorus = next((i for i in sung if parts[i].kind == chorus), len(parts))
    times = Counter(part.kind for part in parts)
    for i in sung:
        if parts[i].kind == chorus:
            labels[i] = "chorus"
        elif i > first_chorus and i < len(parts) - 1 and times[parts[i].kind] == 1:
            labels[i] = "bridge"
    return labels


def _edge(parts: list[Part], i: int) -> str | None:
    """Intro or outro, if it is the first or last part and counts as one."""
    if len(parts) < 2 or i not in (0, len(parts) - 1):
        return None
    share = parts[i].vocal_share
    if share is not None and share >= _SUNG_SHARE:
        return None
    somebody_sings = any((part.vocal_share or 0.0) >= _SUNG_SHARE for part in parts)
    return ("intro" if i == 0 else "outro") if somebody_sings or _stands_back(parts, i) else None


def _middle(parts: list[Part], i: int) -> str:
    """Break or inst for a part without singing; "verse" is a placeholder for sung parts until the chorus is known."""
    share = parts[i].vocal_share
    if share is None or share >= _SUNG_SHARE:
        return "verse"
    return "break" if parts[i].level_db <= np.median([part.level_db for part in parts]) - _BREAK_DB else "inst"


def _stands_back(parts: list[Part], i: int) -> bool:
    """Whether a part occurs only once and is quieter, or much shorter, than the song's typical ones."""
    quiet = parts[i].level_db <= np.median([part.level_db for part in parts]) - _QUIETER_DB
    short = parts[i].length_s < _SHORT * np.mean([part.length_s for part in parts])
    returns = sum(part.kind == parts[i].kind for part in parts) > 1
    return bool((quiet or short) and not returns)


def _chorus(parts: list[Part], sung: list[int]) -> int | None:
    """The loudest of the kinds that recur, if several kinds are sung."""
    times = Counter(parts[i].kind for i in sung)
    returning = [kind for kind, count in times.items() if count > 1]
    if not returning or len(times) < 2:
        return None
    return max(returning, key=lambda kind: np.mean([parts[i].level_db for i in sung if parts[i].kind == kind]))
