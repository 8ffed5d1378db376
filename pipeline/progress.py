"""Live progress: workers report rows to a tally actor, the driver shows it on stderr."""

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_INTERVAL_S = 10.0
_LIVE_INTERVAL_S = 0.5


@dataclass
class Snapshot:
    """What has happened so far in a pass."""

    status: Counter[str] = field(default_factory=Counter)
    audio_s: float = 0.0
    stage_s: dict[str, float] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Rows with a verdict."""
        return sum(self.status.values())

    @property
    def slowest(self) -> str | None:
        """The stage that has taken most time."""
        return max(self.stage_s, key=self.stage_s.__getitem__) if self.stage_s else None


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Tally:
    """Counts rows begun and finished. Losing it loses the display and the attempt counts, never a row."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget everything: another pass begins."""
        self._begun: Counter[tuple[str, str]] = Counter()
        self._finished: dict[str, str] = {}
        self._status: Counter[str] = Counter()
        self._audio_s = 0.0
        self._stage_s: defaultdict[str, float] = defaultdict(float)
        self._broken: str | None = None

    def begun(self, row_ids: list[str], operator: str) -> dict[str, int]:
        """How often an operator has now begun each of these rows."""
        for row_id in row_ids:
            self._begun[row_id, operator] += 1
        return {row_id: self._begun[row_id, operator] for row_id in row_ids}

    def passed(self, row_ids: list[str], operator: str) -> None:
        """An operator is through with these rows; if their block comes back, that is not their fault."""
        for row_id in row_ids:
            del self._begun[row_id, operator]

    def finished(self, rows: list[dict[str, Any]]) -> None:
        """Rows that have passed the last operator; a row that was repeated counts once."""
        for row in rows:
            before = self._finished.get(row["row_id"])
            if before is None:
                self._audio_s += row["seconds"]
            else:
                self._status[before] -= 1
            self._finished[row["row_id"]] = row["status"]
            self._status[row["status"]] += 1
            for step in row["timing"]:
                self._stage_s[step["stage"]] += step["seconds"]

    def report_broken(self, message: str) -> None:
        """A stage cannot start, which repeating will not mend."""
        self._broken = message

    def broken(self) -> str | None:
        """Why the pass cannot go on, if so."""
        return self._broken

    def snapshot(self) -> Snapshot:
        """The counts so far."""
        return Snapshot(self._status, self._audio_s, dict(self._stage_s))


@contextmanager
def shown(title: str, total: int, tally: ActorHandle, *, enabled: bool = True) -> Iterator[None]:
    """Show a tally while the body runs: a live bar on a terminal, a plain line every ten seconds elsewhere."""
    if not enabled:
        yield
        return
    display = _Bar(title, total) if sys.stderr.isatty() else _Lines(title, total)
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(display, tally, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
        display.close()


def _follow(display: "_Bar | _Lines", tally: ActorHandle, stop: threading.Event) -> None:
    while True:
        finished = stop.wait(display.interval_s)
        try:
            snapshot: Snapshot = ray.get(tally.snapshot.remote(), timeout=5)  # type: ignore[assignment]
            display.update(snapshot)
        except ray.exceptions.GetTimeoutError:
            pass  # workers that load models leave the tally no time; the next answer comes
        except ray.exceptions.RayError:
            return  # the cluster is going down; the driver says why
        if finished:
            return


class _Bar:
    interval_s = _LIVE_INTERVAL_S

    def __init__(self, title: str, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(title, total=total, figures="")
        self._started = time.monotonic()
        self._progress.start()

    def update(self, snapshot: Snapshot) -> None:
        figures = _figures(snapshot, time.monotonic() - self._started)
        self._progress.update(self._task, completed=snapshot.done, figures=figures)

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    interval_s = _PLAIN_INTERVAL_S

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._started = time.monotonic()

    def update(self, snapshot: Snapshot) -> None:
        elapsed = time.monotonic() - self._started
        left = (self._total - snapshot.done) * elapsed / snapshot.done if snapshot.done else None
        eta = f", ETA {left:.0f} s" if left else ""
        line = f"{self._title}: {snapshot.done}/{self._total} rows, {_figures(snapshot, elapsed)}{eta}"
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def _figures(snapshot: Snapshot, elapsed_s: float) -> str:
    counts = " ".join(f"{snapshot.status.get(status, 0)} {status}" for status in ("kept", "filtered", "failed"))
    speed = snapshot.audio_s / max(elapsed_s, 1e-9)
    slowest = f", slowest stage {snapshot.slowest}" if snapshot.slowest else ""
    return f"{counts}, {speed:.1f} audio hours per hour{slowest}"
