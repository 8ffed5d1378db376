"""`songmill models`: lists, downloads and verifies the entries of the model store."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from pipeline.commands.exit_codes import DATA_PROBLEM, USAGE_PROBLEM, fail
from pipeline.console.escaping import tell
from pipeline.models.errors import ModelStoreError, UnknownModel

if TYPE_CHECKING:
    from pipeline.models.progress import Progress
    from pipeline.models.store import Check, ModelStore

_GROUPS = ("small", "full", "demo", "test", "bench")

app = typer.Typer(
    help="The model store: weights and test audio, every file pinned by its sha256.", no_args_is_help=True
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list", epilog="Example: songmill models list --json")
def list_entries(as_json: AsJson = False) -> None:
    """List all entries, their licences, and whether they are in the store."""
    store = _store()
    entries = [
        {
            **entry.model_dump(include={"name", "kind", "groups", "task", "licence", "homepage"}),
            "size_bytes": entry.size,
            "state": store.status(entry.name).state,
        }
        for entry in store.entries()
    ]
    if as_json:
        typer.echo(json.dumps({"root": str(store.root), "entries": entries}, indent=2))
        return
    table = Table(
        Column("name", no_wrap=True), "groups", "task", "licence", "size", "state", title=escape(str(store.root))
    )
    for entry in entries:
        size = decimal(entry["size_bytes"]) if entry["size_bytes"] else "?"
        groups = ", ".join(entry["groups"])
        table.add_row(entry["name"], groups, entry["task"], entry["licence"], size, entry["state"])
    Console(width=None if sys.stdout.isatty() else 140).print(table)


@app.command(
    epilog="Examples: songmill models pull small | songmill models pull small test | "
    "songmill models pull whisper-base --from /mnt/mirror"
)
def pull(
    names: Annotated[list[str], typer.Argument(help=f"Entries or groups ({', '.join(_GROUPS)}).")],
    folder: Annotated[
        Path | None,
        typer.Option("--from", exists=True, file_okay=False, help="Folder with the files or wheels, or another store."),
    ] = None,
) -> None:
    """Fetch entries that are not in the store yet; for those that are, the network is not used."""
    store = _store()
    wanted = _expanded(store, names)
    problems = []
    with _progress_on_stderr() as progress:
        for name in wanted:
            try:
                store.pull(name, progress, folder)
            except ModelStoreError as error:
                problems.append(str(error))
    for problem in problems:
        tell(f"error: {problem}", "red")
    if problems:
        raise typer.Exit(DATA_PROBLEM)
    typer.echo(f"{', '.join(wanted)}: ready in {store.root}")


@app.command(epilog="Examples: songmill models verify | songmill models verify whisper-base --json")
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Entries or groups; default: all in the store.")] = None,
    as_json: AsJson = False,
) -> None:
    """Hash every file again. The next pull fetches damaged entries again."""
    store = _store()
    checks = [store.verify(name) for name in _expanded(store, names or [e.name for e in store.entries()])]
    found = checks if names else [check for check in checks if check.state != "missing"]
    if as_json:
        typer.echo(json.dumps([vars(check) for check in found], indent=2))
    else:
        for check in found:
            typer.echo(_line(check))
    if any(check.state != "ready" for check in found):
        raise typer.Exit(DATA_PROBLEM)


def _store() -> "ModelStore":
    from pipeline.models.store import ModelStore  # here because Arrow takes long to import and `--help` needs none

    return ModelStore()


def _line(check: "Check") -> str:
    return f"{check.name}: {check.state}" + (f" ({check.problem})" if check.problem else "")


def _expanded(store: "ModelStore", names: list[str]) -> list[str]:
    """Names of entries and groups as names of entries, without duplicates."""
    wanted: dict[str, None] = {}
    for name in names:
        if name in _GROUPS:
            wanted.update(dict.fromkeys(entry.name for entry in store.entries() if name in entry.groups))
            continue
        try:
            wanted[store.entry(name).name] = None
        except UnknownModel as error:
            fail(f"{error}; groups are {', '.join(_GROUPS)}", USAGE_PROBLEM)
    return list(wanted)


@contextmanager
def _progress_on_stderr() -> Iterator["Progress"]:
    """On a terminal one bar per entry; elsewhere one line per step."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(*columns, console=console) as bars:
        yield _bars(bars)


def _lines(console: Console) -> "Progress":
    seen: set[tuple[str, str]] = set()

    def report(name: str, step: str, _done: int, total: int) -> None:
        if (name, step) not in seen:
            seen.add((name, step))
            size = f" ({decimal(total)})" if total else ""
            console.print(f"{name}: {step}{size}", highlight=False)

    return report


def _bars(bars: Bars) -> "Progress":
    tasks: dict[str, TaskID] = {}

    def report(name: str, step: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name)
        bars.update(tasks[name], description=f"{name}: {step}", completed=done, total=total or None)

    return report
