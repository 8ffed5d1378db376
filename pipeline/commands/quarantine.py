"""`songmill quarantine`: shows what was turned away, and retries failed rows."""

import json
import sys
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commands.exit_codes import guarded
from pipeline.commands.options import Dataset
from pipeline.errors import UsageProblem
from schemas.dataset import Layout

if TYPE_CHECKING:
    from pipeline.dataset.quarantine import Group

_MESSAGE = 80


class Action(StrEnum):
    """What to do with the quarantine."""

    LIST = "list"
    SHOW = "show"
    RETRY = "retry"


def quarantine_command(
    dataset: Dataset,
    action: Annotated[Action, typer.Argument(help="list, show ID, or retry.")] = Action.LIST,
    row: Annotated[str | None, typer.Argument(metavar="[ID]", help="Row or track id, or a prefix of it.")] = None,
    stage: Annotated[str | None, typer.Option(help="Only rows turned away by this stage.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only rows turned away for this reason, an error class.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what was turned away, by stage and error class; retry failed rows.

    A retry runs only on the chosen failed rows, from the stage that failed: their other columns are kept, audio and
    stems are decoded again. It uses the settings that the dataset was last written with.

    [bold]Examples[/]

      songmill quarantine dataset

      songmill quarantine dataset show 5f2c8a91

      songmill quarantine dataset retry --stage caption --reason EndpointUnreachable
    """
    from pipeline.dataset.quarantine import (  # here because DuckDB and Arrow take long to import
        find_row,
        groups,
        rows_to_retry,
    )
    from schemas.storage.location import absolute

    layout = Layout.at(absolute(dataset))
    with guarded():
        if action is Action.SHOW:
            if row is None:
                raise UsageProblem(f"name a row: songmill quarantine {dataset} show ID")
            _show_row(find_row(layout, row), as_json)
        elif action is Action.RETRY:
            _retry(layout, rows_to_retry(layout, row, stage, reason), progress=not quiet, as_json=as_json)
        else:
            _show_groups(groups(layout, stage=stage, reason=reason), as_json)


def _retry(layout: Layout, row_ids: frozenset[str], *, progress: bool, as_json: bool) -> None:
    from pipeline.curation.curate import curate
    from pipeline.dataset.quarantine import groups
    from pipeline.dataset.saved_config import remembered_config
    from pipeline.models.store import ModelStore

    curate(remembered_config(layout), ModelStore(), progress=progress, retry=row_ids)
    left = sum(group.rows for group in groups(layout) if group.status == "failed")
    if as_json:
        print(json.dumps({"tried": len(row_ids), "failed_now": left}))
    else:
        typer.echo(f"{layout.url}: {len(row_ids)} rows retried; {left} rows of the dataset are failed now")


def _show_groups(found: "list[Group]", as_json: bool) -> None:
    if as_json:
        print(json.dumps([group.model_dump(mode="json") for group in found], indent=2))
        return
    if not found:
        print("nothing was turned away")
        return
    table = Table("status", "stage", "reason", "rows", "hours", "first seen", "last seen", "tries", "example")
    for group in found:
        table.add_row(
            group.status,
            escape(group.stage),
            escape(group.reason),
            str(group.rows),
            f"{group.hours:.3f}",
            _moment(group.first_seen),
            _moment(group.last_seen),
            str(group.tries),
            escape(_shortened(group.message or "")),
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _show_row(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(row, default=str, ensure_ascii=False))
        return
    table = Table.grid(padding=(0, 2))
    for name, text in _flat(row, ()):
        table.add_row(name, escape(text))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _flat(value: Any, path: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    """Every value as a dotted name and its text; long lists as their length."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, (*path, name))
    elif isinstance(value, list) and len(value) > 12:
        yield ".".join(path), f"{len(value)} values"
    elif value is not None:
        yield ".".join(path), str(value)


def _shortened(message: str) -> str:
    first = message.splitlines()[0] if message else ""
    return first if len(first) <= _MESSAGE else first[: _MESSAGE - 1] + "…"


def _moment(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else "-"
