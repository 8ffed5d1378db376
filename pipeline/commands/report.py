"""`songmill inspect --html`: writes the report, with progress on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.commands.exit_codes import guarded
from pipeline.view.report import Watch, write_report
from schemas.dataset import Layout

_LINE_INTERVAL_S = 10.0


def report(layout: Layout, out: Path, rows: int, seed: int, *, as_json: bool) -> None:
    """Write a dataset's report and print a summary of it."""
    with guarded(), watching() as watch:
        made = write_report(layout, out, rows=rows, seed=seed, watch=watch)
    if as_json:
        typer.echo(made.model_dump_json(indent=2))
        return
    shown = ", ".join(f"{count} {status}" for status, count in sorted(made.rows.items()))
    typer.echo(f"{out}: {shown or 'no rows'}; {made.heard} with sound; {made.bytes / 1e6:.1f} MB")
    if made.remark:
        typer.echo(made.remark, err=True)


@contextmanager
def watching() -> Iterator[Watch]:
    """On a terminal a progress bar, otherwise a line every ten seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("sounds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("sounds", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _lines(console: Console) -> Watch:
    last_line = time.monotonic()

    def watch(done: int, total: int) -> None:
        nonlocal last_line
        if time.monotonic() - last_line >= _LINE_INTERVAL_S:
            last_line = time.monotonic()
            console.print(f"sounds {done}/{total}", highlight=False)

    return watch
