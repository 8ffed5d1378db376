"""Progress of a training run on stderr: a live bar on a terminal, otherwise a line every few seconds.

It follows the run's `metrics.jsonl`, so it works in whichever process the steps are taken.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LOOK_INTERVAL_S = 0.5
_LINE_INTERVAL_S = 10.0

Figures = Mapping[str, float]


@contextmanager
def shown(metrics: Path, first: int, steps: int, *, enabled: bool = True) -> Iterator[None]:
    """Show metrics as they are added to a file, while the context is open.

    Args:
        metrics: the run's `metrics.jsonl`.
        first: step that the run resumes from.
        steps: total number of steps.
        enabled: whether to show anything.
    """
    if not enabled:
        yield
        return
    console = Console(stderr=True)
    display = _Bar(console, first, steps) if console.is_terminal else _Lines(console, first, steps)
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(_Tail(metrics, first), display, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
        display.close()


class _Display(Protocol):
    def update(self, figures: Figures) -> None: ...

    def close(self) -> None: ...


def _follow(tail: "_Tail", display: _Display, stop: threading.Event) -> None:
    while True:
        finished = stop.wait(_LOOK_INTERVAL_S)
        for figures in tail.new():
            display.update(figures)
        if finished:
            return


class _Tail:
    """Reads new entries of a metrics file. A worker that restarts removes some entries and writes them again."""

    def __init__(self, path: Path, after: int) -> None:
        self._path, self._after = path, after

    def new(self) -> list[Figures]:
        text = self._path.read_text() if self._path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        figures = [json.loads(line) for line in whole.splitlines() if line]
        unseen = [step for step in figures if step["step"] > self._after]
        if unseen:
            self._after = int(unseen[-1]["step"])
        return unseen


class _Bar:
    def __init__(self, console: Console, first: int, steps: int) -> None:
        self._progress = Progress(
            TextColumn("step"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._task = self._progress.add_task("", total=steps, completed=first, figures="")
        self._progress.start()

    def update(self, figures: Figures) -> None:
        self._progress.update(self._task, completed=figures["step"], figures=_format_figures(figures))

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    def __init__(self, console: Console, first: int, steps: int) -> None:
        self._console, self._first, self._steps = console, first, steps
        self._began, self._last_line = time.monotonic(), 0.0

    def update(self, figures: Figures) -> None:
        now = time.monotonic()
        step = int(figures["step"])
        if step != self._steps and now - self._last_line < _LINE_INTERVAL_S:
            return
        self._last_line = now
        left = (self._steps - step) * (now - self._began) / max(1, step - self._first)
        eta = f", ETA {left:.0f} s" if step < self._steps else ""
        self._console.print(
            f"step {step}/{self._steps}: {_format_figures(figures)}{eta}", highlight=False, soft_wrap=True
        )

    def close(self) -> None:
        pass


def _format_figures(figures: Figures) -> str:
    validation = f", held out {figures['validation/loss']:.4f}" if "validation/loss" in figures else ""
    rate = next((name for name in figures if name.endswith("_per_s")), None)
    speed = f", {figures[rate]:.1f} {rate.removesuffix('_per_s')}/s" if rate else ""
    return f"loss {figures['loss']:.4f}{validation}{speed}"
