"""One `songmill curate` with recorded stages, instrumented: `python -m benchmarks.scale_run MANIFEST DATASET`.

Prints JSON: seconds and calls of the driver's own steps, when each pass began and first delivered, memory over time.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import pipeline.curation.curate as curation
import pipeline.curation.scan as scanning
from benchmarks import recorded
from pipeline.dataset.ledger import Ledger
from pipeline.models.store import ModelStore
from schemas.config import CurateConfig

_STEPS = ("read_manifest", "read_scan", "rows_to_scan", "judge_scan", "units_to_do", "renew_stats", "write_card")
_RESOURCES = {"rows_per_block": 1000, "rows_per_shard": 1000, "rows_per_scan_part": 1000}
_GATES = {"quality": {"min_bandwidth_hz": 7000.0}}


class Clock:
    """Seconds of wrapped functions, and moments since the start."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.steps: dict[str, dict[str, float]] = {}
        self.moments: dict[str, float] = {}
        self.cpu: dict[str, float] = {}  # of this process, at the same moments

    def wrap(self, owner: Any, name: str, moment: str | None = None) -> None:
        """Time every call of `owner.name`; the end of the first and the last one is a moment."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                step = self.steps.setdefault(name, {"calls": 0, "seconds": 0.0})
                step["calls"] += 1
                step["seconds"] += time.perf_counter() - began
                if moment:
                    for which in {f"first {moment}"} - self.moments.keys() | {f"last {moment}"}:
                        self.moments[which], self.cpu[which] = self.now, time.process_time()

        setattr(owner, name, timed)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started


def main(manifest: str, dataset: str) -> None:
    """Run it and print the times."""
    clock = Clock()
    for step in _STEPS:
        clock.wrap(curation, step)
    clock.wrap(Ledger, "open")
    clock.wrap(Ledger, "add", "commit")
    clock.wrap(scanning, "move_durably", "scan part")
    memory: list[tuple[float, float]] = []
    threading.Thread(target=_watch, args=(clock, memory), daemon=True).start()
    outcome = curation.curate(configuration(manifest, Path(dataset)), ModelStore(), progress=True)
    cpu = psutil.Process().cpu_times()
    told = {
        "rows": outcome.stats.rows,
        "worked_on": outcome.worked_on,
        "wall_s": clock.now,
        "driver_cpu_s": cpu.user + cpu.system,
        "steps": clock.steps,
        "moments": clock.moments,
        "cpu": clock.cpu,
        "memory_mb": memory,
    }
    print(json.dumps(told))


def configuration(manifest: str, dataset: Path) -> CurateConfig:
    """Recorded stages in blocks, shards and scan parts of a thousand rows."""
    return CurateConfig.model_validate(
        {
            "input": {"path": manifest},
            "output": dataset,
            "stages": recorded.stages(),
            "gates": _GATES,
            "resources": _RESOURCES,
        }
    )


def _watch(clock: Clock, memory: list[tuple[float, float]]) -> None:
    process = psutil.Process()
    while True:
        memory.append((round(clock.now, 1), round(process.memory_info().rss / 1e6)))
        time.sleep(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
