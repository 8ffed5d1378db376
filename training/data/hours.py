"""Hours of audio that a model has been trained on."""

from collections import Counter
from collections.abc import Iterable, Mapping

KINDS = ("source", "language", "license")


class HoursSeen:
    """Hours of audio by source, language and licence, over all workers and epochs; repeats count again."""

    def __init__(self, hours: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self._hours = {kind: Counter((hours or {}).get(kind, {})) for kind in KINDS}

    def add(self, songs: Iterable[Mapping[str, str]], seconds: Iterable[float]) -> None:
        """Add songs, each with its source, language and licence, and the seconds used of each."""
        for song, length in zip(songs, seconds, strict=True):
            for kind, hours in self._hours.items():
                hours[song[kind]] += length / 3600  # type: ignore[assignment]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Kind -> value -> hours."""
        return {kind: dict(hours) for kind, hours in self._hours.items()}
