"""Progress of a sampling run on stderr: a live bar on a terminal, otherwise a line per phase."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.sampling.sample import Watch

_LINE_INTERVAL_S = 10.0


@contextmanager
def shown(*, enabled: bool) -> Iterator[Watch]:
    """Yields a callback that shows phases and steps while the context is open."""
    console = Console(stderr=True)
    if not enabled:
        yield lambda _phase, _done, _total: None
    elif console.is_terminal:
        with _bar(console) as watch:
            yield watch
    else:
        yield _lines(console)


@contextmanager
def _bar(console: Console) -> Iterator[Watch]:
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("loading", total=None)
        phase_shown = "loading"

        def watch(phase: str, done: int, total: int) -> None:
            nonlocal task, phase_shown
            if phase != phase_shown:
                progress.remove_task(task)  # a reset would keep its total
                task, phase_shown = progress.add_task(phase, total=total or None), phase
            progress.update(task, completed=done)

        yield watch


def _lines(console: Console) -> Watch:
    phase_shown, phase_began, last_line = "", 0.0, 0.0

    def watch(phase: str, done: int, total: int) -> None:
        nonlocal phase_shown, phase_began, last_line
        now = time.monotonic()
        if phase != phase_shown:
            phase_shown, phase_began = phase, now
        elif done == total or now - last_line < _LINE_INTERVAL_S:
            return
        last_line = now
        steps = f" {done}/{total} steps" if total else ""
        eta = f", ETA {(total - done) * (now - phase_began) / (done - 1):.0f} s" if done > 1 else ""
        console.print(f"{phase}{steps}{eta}", highlight=False)

    return watch
