"""`songmill whatif`: what other thresholds would keep, before anything changes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commands.exit_codes import guarded
from pipeline.commands.options import Dataset
from schemas.dataset import Layout

if TYPE_CHECKING:
    from pipeline.edit.whatif import Amount, WhatIf


def whatif_command(
    dataset: Dataset,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="column.min_field=NUMBER or max_; null for none. May be repeated.")
    ] = None,
    nearest: Annotated[int, typer.Option(min=0, help="Rows to list on each side of a threshold.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Write a page to listen to these rows.")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Apply the thresholds from now on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show which hours other thresholds would keep and lose, from the stored measurements. Runs no model.

    Changes nothing without --apply. With it, rejected rows move to the quarantine at once, accepted ones come back, and
    those that lack columns are pending until the next `songmill curate DATASET`.

    [bold]Examples[/]

      songmill whatif dataset --set quality.min_bandwidth_hz=15000 --set events.max_live=0.3

      songmill whatif dataset --set quality.min_bandwidth_hz=15000 --nearest 20 --html nearest.html

      songmill whatif dataset --set quality.min_bandwidth_hz=15000 --apply
    """
    from pipeline.edit.whatif import what_if  # here because DuckDB and Arrow take long to import
    from schemas.storage.location import absolute

    layout = Layout.at(absolute(dataset))
    with guarded():
        found = what_if(layout, overrides or [], nearest)
        if html:
            _write_page(layout, html, overrides or [], found)
        if apply:
            from pipeline.edit.apply_thresholds import apply_thresholds  # here because Ray takes seconds to import

            apply_thresholds(layout, overrides or [])
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    _show(Console(width=None if sys.stdout.isatty() else 160), found)
    if apply:
        waiting = found.pending.rows
        left = f"; {waiting} rows are pending, run: songmill curate {dataset}" if waiting else ""
        typer.echo(f"{dataset}: these thresholds apply now{left}")


def _write_page(layout: Layout, html: Path, overrides: Sequence[str], found: "WhatIf") -> None:
    """Write the page of the rows nearest to the thresholds, with their values judged by the new ones."""
    from pipeline.commands.report import watching
    from pipeline.edit.rejudge import rejudge
    from pipeline.view.report import write_report

    rows = list(dict.fromkeys(near.row_id for rows in found.nearest.values() for near in rows))
    title = f"Nearest to {', '.join(found.nearest) or 'no threshold'}"
    gates = rejudge(layout, overrides).judging
    with watching() as watch:
        write_report(layout, html, rows=0, extra_rows=rows, extra_title=title, gates=gates, watch=watch)


def _show(console: Console, found: "WhatIf") -> None:
    for name, (now, then) in found.changes.items():
        console.print(f"{escape(name)}: {_bound(now)} -> {_bound(then)}", highlight=False)
    table = Table("", "rows", "hours")
    for title, amount in {
        "kept now": found.kept_now,
        "kept with these thresholds": found.kept_then,
        **{f"  lost to {reason}": amount for reason, amount in found.newly_rejected.items()},
        "  back at once": found.newly_kept,
        "back once the missing columns are computed": found.pending,
    }.items():
        table.add_row(escape(title), str(amount.rows), _hours(amount))
    console.print(table)
    for name, balances in found.by.items():
        table = Table(name, "hours now", "hours then", "change")
        for value, balance in balances.items():
            change = balance.then - balance.now
            table.add_row(escape(value), f"{balance.now:.3f}", f"{balance.then:.3f}", f"{change:+.3f}")
        console.print(table)
    for name, rows in found.nearest.items():
        table = Table("", "value", "title", "row", title=f"nearest to {escape(name)}", title_justify="left")
        for row in rows:
            table.add_row(
                "out" if row.rejected else "in", f"{row.value:.6g}", escape(row.title or row.uri), row.row_id[:12]
            )
        console.print(table)


def _hours(amount: "Amount") -> str:
    return f"{amount.hours:.3f}"


def _bound(bound: float | None) -> str:
    return "none" if bound is None else f"{bound:g}"
