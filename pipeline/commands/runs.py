"""`songmill runs`: what runs did to a dataset, and what one does just now."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.commands.options import AsJson, Dataset
from pipeline.commands.output import print_json, wide_console
from pipeline.errors import UsageProblem
from schemas.dataset import Layout

if TYPE_CHECKING:
    from pipeline.dataset.runs import RunInfo


def runs_command(
    dataset: Dataset,
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's id or the beginning of it.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show what a run does, as it does it.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs that have written a dataset: settings, versions, times, workers that died, nodes that were lost.

    With RUN, show its settings and its events. With --follow, show the events of the latest run as they happen, from
    another terminal; with --json as JSON lines.

    [bold]Examples[/]

      songmill runs dataset

      songmill runs dataset 20261130T2145 --json

      songmill runs dataset --follow
    """
    from pipeline.dataset.runs import events, read_runs
    from pipeline.dataset.runs import follow as followed
    from schemas.storage.location import absolute

    layout = Layout.at(absolute(dataset))
    found = read_runs(layout)
    if not found:  # the first run has a record before its dataset has a row
        layout.require()
    if follow:
        for event in followed(layout, _chosen(layout, found, run)):
            typer.echo(json.dumps(event) if as_json else _line(event))
    elif run is not None:
        chosen = _chosen(layout, found, run)
        _show(layout, chosen, found[-1], list(events(layout, chosen)), as_json=as_json)
    else:
        _list(layout, found, as_json=as_json)


def _chosen(layout: Layout, runs: "list[RunInfo]", wanted: str | None) -> "RunInfo":
    fitting = [run for run in runs if run.id.startswith(wanted or "")]
    if not fitting:
        which = f"run {wanted}" if wanted else "run"
        raise UsageProblem(f"{layout.url} has no {which} on record; `songmill runs {layout.url}` lists them")
    return fitting[-1]


def _list(layout: Layout, runs: "list[RunInfo]", *, as_json: bool) -> None:
    from pipeline.dataset.runs import state

    if as_json:
        print_json([run.model_dump(mode="json") | {"state": state(layout, run, runs[-1])} for run in runs])
        return
    if not runs:
        typer.echo(f"{layout.url}: no run is on record; versions before this one kept none")
        return
    heads = ("run", "command", "state", "took", "rows", "nodes lost", "workers died", "songmill", "host")
    table = Table(*heads, box=None, pad_edge=False)
    for run in runs:
        rows = sum(run.facts.get("rows", {}).values())
        lost, died = (str(run.facts.get(name, 0)) for name in ("nodes_lost", "worker_deaths"))
        told = (run.id, run.command, state(layout, run, runs[-1]), _took(run), f"{rows}", lost, died)
        table.add_row(*map(escape, (*told, run.versions.get("songmill", ""), run.host)))
    wide_console().print(table)


def _show(layout: Layout, run: "RunInfo", latest: "RunInfo", events: list[dict[str, Any]], *, as_json: bool) -> None:
    from pipeline.dataset.runs import state

    facts = run.model_dump(mode="json") | {"state": state(layout, run, latest)}
    if as_json:
        print_json(facts | {"events": events})
        return
    import yaml

    typer.echo(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), nl=False)
    for event in events:
        typer.echo(_line(event))


def _line(event: dict[str, Any]) -> str:
    """An event on one line: when, what, and its facts."""
    facts = {name: value for name, value in event.items() if name not in ("time", "run", "event")}
    told = " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in facts.items())
    return f"{event.get('time', '')} {event.get('event', '')} {told}".rstrip()


def _took(run: "RunInfo") -> str:
    if run.ended is None:
        return ""
    seconds = int((run.ended - run.started).total_seconds())
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
