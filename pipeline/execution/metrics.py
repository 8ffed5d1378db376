"""The counts of a run for Prometheus, through Ray."""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from pipeline.execution.run_counts import RunCounts

_DATASET = "dataset"


class Metrics:
    """Counters and gauges, exported by Ray's agent on the driver's node if `ray[default]` is installed there.

    Ray puts `ray_` in front of each name, and `_total` behind those of counters. `deploy/grafana.json` draws them.

    Args:
        dataset: a label on all of them: the dataset's folder.
    """

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._metrics: dict[str, Counter | Gauge] = {}
        self._counted: dict[tuple[str, tuple[str, ...]], float] = {}

    def event(self, name: str, **facts: Any) -> None:
        """Events are not exported; what they change is counted."""

    def look(self, counts: RunCounts) -> None:
        """Bring everything up to date."""
        self._count("rows", "rows that have left the last operator", ("pass", "status"), counts.through)
        self._count("stage_rows", "rows that a stage has completed", ("stage",), _by_one(counts.stage_rows))
        self._count("stage_seconds", "seconds that workers have spent in a stage", ("stage",), _by_one(counts.stage_s))
        self._count("worker_deaths", "workers that have died", (), {(): counts.died})
        self._count("nodes_lost", "nodes that have left during a run", (), {(): len(counts.nodes_lost)})
        self._count("repeated_blocks", "blocks that had to enter again", (), {(): counts.repeated})
        self._set("nodes", "nodes of the cluster", (), {(): counts.nodes})
        self._set("workers", "workers that are up", (), {(): counts.workers})
        self._set("bytes_in_flight", "bytes charged to object stores", (), {(): counts.bytes_in_flight})
        queued: dict[tuple[str, ...], float] = {
            (str(number),): waiting for number, waiting in enumerate(counts.queued, 1)
        }
        self._set("queued_blocks", "blocks that wait for an operator", ("operator",), queued)

    def _count(self, name: str, what: str, keys: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> None:
        """Counters only grow: add what has come since the last time."""
        counter = self._metric(Counter, name, what, keys)
        for labels, count in values.items():
            grown = count - self._counted.get((name, labels), 0.0)
            if grown > 0:
                counter.inc(grown, self._tags(keys, labels))
                self._counted[name, labels] = count

    def _set(self, name: str, what: str, keys: tuple[str, ...], values: Mapping[tuple[str, ...], float]) -> None:
        gauge = self._metric(Gauge, name, what, keys)
        for labels, figure in values.items():
            gauge.set(figure, self._tags(keys, labels))

    def _metric(self, kind: Any, name: str, what: str, keys: tuple[str, ...]) -> Any:
        if name not in self._metrics:
            self._metrics[name] = kind(f"songmill_{name}", what, (_DATASET, *keys))
        return self._metrics[name]

    def _tags(self, keys: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, str]:
        tags = {_DATASET: self._dataset, **dict(zip(keys, labels, strict=True))}
        # Ray takes ASCII only; a folder may have any name.
        return {key: value.encode("ascii", "backslashreplace").decode() for key, value in tags.items()}


def _by_one(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(label,): value for label, value in values.items()}
