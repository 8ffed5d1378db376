"""`songmill forget`: removes rows from a dataset for good."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.exit_codes import guarded
from pipeline.commands.options import Dataset
from pipeline.errors import DataProblem, UsageProblem
from schemas.dataset import Layout


def forget_command(
    dataset: Dataset,
    track: Annotated[list[str] | None, typer.Option(help="Row or track id; may be repeated.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition over the columns of a row.")] = None,
    copies: Annotated[bool, typer.Option(help="Also forget rows turned away as copies of them.")] = True,
    reason: Annotated[str | None, typer.Option(help="Why; stored with the ids.")] = None,
    runs: Annotated[
        list[Path] | None, typer.Option(help="Folders to search for models; default: the dataset's parent folder.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Allow these ids to come back with the next curate.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Remove songs from shards, features, quarantine and scan; no later curate brings them back.

    Only a song's two hashes are kept, so that it is recognised if it reappears under any name. Rows that were turned
    away as its copies are removed too. Models trained on it are listed but not changed; neither is the song's file.

    [bold]Examples[/]

      songmill forget dataset --track 5f2c8a91d0b64c1f8a7e3b2d9c0f1e42 --reason "takedown 2026-114"

      songmill forget dataset --where "artist = 'X'" --runs models/ --yes
    """
    from schemas.storage.location import absolute

    layout = Layout.at(absolute(dataset))
    with guarded():
        if undo:
            _undo(layout, track or [])
            return
        from pipeline.edit.forget import find_forgettable, forget, models_trained_on  # here because Ray loads slowly

        found = find_forgettable(layout, track or [], where, copies=copies)
        amount = f"{len(found.tracks)} rows ({found.copies} of them copies), {found.hours:.3f} h of kept audio"
        if not yes:
            _ask(f"{dataset}: forget {amount}?")
        forget(layout, found, reason)
        places = runs or ([] if _is_in_bucket(layout) else [Path(layout.url).parent])
        models = models_trained_on(found.tracks.values(), places)
    if as_json:
        forgotten = {"rows": found.tracks, "copies": found.copies, "hours": found.hours}
        print(json.dumps({**forgotten, "models": [str(model) for model in models]}, indent=2))
        return
    typer.echo(f"{dataset}: forgot {amount}")
    if _is_in_bucket(layout):
        typer.echo("if versioning is on for the bucket, it keeps their old bytes: remove the old versions there too")
    if models:
        typer.echo("\n".join(["trained on them:", *(f"  {model}" for model in models)]))
    else:
        typer.echo("no model found" if places else "no model was looked for: name folders to search with --runs")


def _is_in_bucket(layout: Layout) -> bool:
    from schemas.storage.options import scheme

    return scheme(layout.url) is not None


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise UsageProblem(f"{question} Give --yes to confirm")
    typer.confirm(question, abort=True)


def _undo(layout: Layout, ids: list[str]) -> None:
    from pipeline.dataset.tombstones import unbury
    from pipeline.dataset.writing import exclusive_lock

    if not ids:
        raise UsageProblem("name what may come back: --undo --track ID")
    count = 0
    if layout.store.exists(layout.tombstones):
        with exclusive_lock(layout):
            count = unbury(layout, ids)
    if not count:
        raise DataProblem(f"{layout.url}: none of these is forgotten: {', '.join(ids)}")
    typer.echo(f"{layout.url}: {count} rows may come back with the next curate")
