"""Live progress on stderr: finished rows, running stages, and the song that has been in one stage for longest."""

import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from pipeline.console.library_output import screen
from pipeline.execution.run_counts import AtWork, RunCounts

_PLAIN_INTERVAL_S = 10.0
_LIVE_INTERVAL_S = 1.0
_LONG_S = 30.0  # a song that has been in a stage for longer is shown by name
_NAME = 40  # maximum characters of the name


@contextmanager
def shown(title: str, total: int, counts: RunCounts, *, enabled: bool = True) -> Iterator[None]:
    """Show the counts during the `with` block: a live bar on a terminal, else at most one line every ten seconds.

    Args:
        title: name of the pass.
        total: number of rows.
        counts: the counts, which the run updates.
        enabled: False shows nothing.
    """
    if not enabled:
        yield
        return
    display = _Bar(title, total) if screen().isatty() else _Lines(title, total)
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(display, counts, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
        display.close()


def _follow(display: "_Bar | _Lines", counts: RunCounts, stop: threading.Event) -> None:
    while not stop.wait(display.interval_s):
        display.update(counts, counts.look())
    display.update(counts, [])


class _Bar:
    interval_s = _LIVE_INTERVAL_S

    def __init__(self, title: str, total: int) -> None:
        on_one_line = Column(no_wrap=True, overflow="ellipsis")
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False, table_column=on_one_line),
            console=Console(file=screen()),
            redirect_stdout=False,
            redirect_stderr=False,  # redirecting would show Ray's suppressed output
        )
        self._task = self._progress.add_task(title, total=total, figures="")
        self._started = time.monotonic()
        self._progress.start()

    def update(self, counts: RunCounts, at_work: list[AtWork]) -> None:
        parts = [_figures(counts, time.monotonic() - self._started), _cluster(counts), _stages(at_work)]
        self._progress.update(self._task, completed=counts.done, figures=", ".join(filter(None, parts)))

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    interval_s = _PLAIN_INTERVAL_S

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._started = time.monotonic()
        self._printed: object = None

    def update(self, counts: RunCounts, at_work: list[AtWork]) -> None:
        news = _news(counts, at_work)
        if news == self._printed:
            return
        self._printed = news
        elapsed = time.monotonic() - self._started
        left = (self._total - counts.done) * elapsed / counts.done if counts.done else None
        parts = [
            f"{self._title}: {counts.done}/{self._total} rows",
            _figures(counts, elapsed),
            _cluster(counts),
            _stages(at_work),
            f"ETA {left:.0f} s" if left else "",
        ]
        print(", ".join(filter(None, parts)), file=screen(), flush=True)

    def close(self) -> None:
        pass


def _cluster(counts: RunCounts) -> str:
    """Nodes and workers, where there is more than this machine to tell of, and what the run waits for."""
    told = [f"{counts.nodes} nodes, {counts.workers} workers"] if counts.nodes > 1 else []
    told += [f"{len(counts.nodes_lost)} nodes lost"] if counts.nodes_lost else []
    told += [f"waiting for a node with {counts.lacking}"] if counts.lacking else []
    return ", ".join(told)


def _figures(counts: RunCounts, elapsed_s: float) -> str:
    verdicts = " ".join(f"{counts.status[status]} {status}" for status in ("kept", "filtered", "failed"))
    return f"{verdicts}, {counts.audio_s / max(elapsed_s, 1e-9):.1f} audio hours per hour"


def _stages(at_work: list[AtWork]) -> str:
    """The running stages, and the longest time a song has been in one; with the song's name if that is long."""
    if not at_work:
        return ""
    workers = Counter(one.stage for one in at_work)
    stages = " ".join(f"{stage}×{count}" if count > 1 else stage for stage, count in sorted(workers.items()))
    oldest = at_work[0]
    text = f"running: {stages}, longest {_duration(oldest.for_s)} in {oldest.stage}"
    return f"{text} ({_name(oldest.uri)})" if oldest.for_s > _LONG_S and oldest.uri else text


def _news(counts: RunCounts, at_work: list[AtWork]) -> object:
    """What must have changed since the last line for a new one to be printed: counts or stages, but not times and
    speeds, which always change. A song that takes long is reported whenever its time has doubled.
    """
    oldest = at_work[0] if at_work else AtWork("", 0.0)
    doubled = int(oldest.for_s / _LONG_S).bit_length()
    song = (oldest.stage, oldest.uri, doubled) if doubled else None
    return dict(counts.status), {one.stage for one in at_work}, song, _cluster(counts)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _name(uri: str) -> str:
    """A file's name, safe for a terminal: without control characters and marks that change the text direction."""
    name = "".join(c for c in PurePath(uri).name if not unicodedata.category(c).startswith("C"))
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
