"""What is handed to Ray's metrics: names, labels, and counters that only grow."""

import pytest

from pipeline.execution import metrics
from pipeline.execution.metrics import Metrics
from pipeline.execution.run_counts import RunCounts


class Played:
    """In place of Ray's counters and gauges; keeps what it is told."""

    told: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.keys = name, tag_keys

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self._tell(tags, self.told.get(self._key(tags), 0.0) + value)

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._tell(tags, value)

    def _tell(self, tags: dict[str, str], value: float) -> None:
        assert tags.keys() == set(self.keys)
        assert all(label.isascii() for label in tags.values())  # Ray raises for any other
        self.told[self._key(tags)] = value

    def _key(self, tags: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
        return self.name, tuple(sorted(tags.items()))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    monkeypatch.setattr(Played, "told", {})
    monkeypatch.setattr(metrics, "Counter", Played)
    monkeypatch.setattr(metrics, "Gauge", Played)
    return Played.told


def test_counters_grow_by_what_has_come_and_gauges_are_as_they_are(told):
    counts, exported = RunCounts(), Metrics("data")
    counts.through["curate", "kept"] = 3
    counts.workers, counts.queued = 4, [2, 0]
    exported.look(counts)
    counts.through["curate", "kept"] = 5
    counts.workers, counts.queued = 1, [0, 7]
    exported.look(counts)
    exported.look(counts)
    assert told["songmill_rows", (("dataset", "data"), ("pass", "curate"), ("status", "kept"))] == 5
    assert told["songmill_workers", (("dataset", "data"),)] == 1
    assert told["songmill_queued_blocks", (("dataset", "data"), ("operator", "2"))] == 7


def test_a_folder_of_any_name_is_a_label(told):
    counts = RunCounts()
    counts.through["scan", "kept"] = 1
    Metrics("/música/\x9b歌").look(counts)
    assert any("/m\\xfasica" in dict(labels)["dataset"] for _, labels in told)
