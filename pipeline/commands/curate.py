"""`songmill curate`: turns songs into shards, adds features to a dataset, resumes runs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.exit_codes import USAGE_PROBLEM, fail, guarded
from pipeline.commands.options import (
    Add,
    AsJson,
    ConfigFile,
    Lyrics,
    Only,
    Out,
    Overrides,
    Profile,
    Source,
    dataset_in,
    split_names,
)
from pipeline.commands.output import print_json
from schemas.dataset import Layout

if TYPE_CHECKING:
    from pipeline.curation.curate import Outcome
    from pipeline.curation.features import Addition
    from schemas.config import CurateConfig


def curate_command(
    source: Source = None,
    out: Out = None,
    config: ConfigFile = None,
    profile: Profile = None,
    lyrics: Lyrics = None,
    stages: Only = "",
    add: Add = "",
    overrides: Overrides = None,
    license: Annotated[str | None, typer.Option(help="SPDX id or URL for songs without a licence.")] = None,
    origin: Annotated[str | None, typer.Option("--source", help="Source for songs without one.")] = None,
    require_license: Annotated[
        list[str] | None, typer.Option(help="SPDX id, family (CC-BY) or unknown to keep; may be repeated.")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Recompute columns whose plan has changed.")] = False,
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Remove rows whose files are gone; otherwise they stay as they are.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn songs into shards. Running the same command again only does what is left.

    A song that was moved or renamed is recognised by its bytes, and its row follows it.

    Given only a dataset, continue with the settings that it was last written with. With --add, compute these features
    for its rows and leave the shards as they are.

    [bold]Examples[/]

      songmill curate songs/ --out dataset

      songmill curate manifest.jsonl --out dataset --lyrics library.parquet --set quality.min_bandwidth_hz=15000

      songmill curate --config run.yaml --update

      songmill curate dataset

      songmill curate songs/ --out dataset --drop-missing

      songmill curate --add latents,ssl --set latents.codec=ACE-Step dataset
    """
    from pipeline.dataset.saved_config import remembered_config
    from pipeline.planning.config import build_config
    from schemas.storage.location import absolute

    dataset = dataset_in(source) if source and out is None and config is None else None
    if dataset:
        if stages or profile or lyrics or license or origin or require_license or update:
            fail(f"{source} is a dataset: to add features to it, give only --add and --set", USAGE_PROBLEM)
        if drop_missing and (add or overrides):
            fail("--drop-missing and --add do not combine: drop first, then add", USAGE_PROBLEM)
        if add or overrides:
            _add_features(dataset, split_names(add), overrides or [], progress=not quiet, as_json=as_json)
            return
        settings = remembered_config(Layout.at(absolute(dataset.url)))
    elif source and out is None and config is None:
        fail(
            f"{source} is not a dataset that can be continued: name an output folder, "
            f"songmill curate {source} --out DATASET, or repeat the whole command that started it",
            USAGE_PROBLEM,
        )
    else:
        settings = build_config(
            file=config,
            profile=profile,
            only=split_names(stages),
            add=split_names(add),
            overrides=overrides or [],
            input=source,
            output=out,
            lyrics=lyrics,
            license=license,
            source=origin,
            require_license=require_license,
        )
    outcome = _curate(settings, update=update, progress=not quiet, drop_missing=drop_missing)
    if as_json:
        done: dict[str, Any] = {
            "worked_on": outcome.worked_on,
            "updated": outcome.updated,
            "unchanged": outcome.unchanged,
        }
        done |= {"input": outcome.input.facts(), "left_out": outcome.input.left_out.model_dump()}
        print_json(done | outcome.stats.model_dump())
        return
    rows = outcome.stats.rows
    updated = f"{outcome.updated} updated, " if outcome.updated else ""
    typer.echo(
        f"{settings.output}: {rows['total']} rows = {rows['kept']} kept + {rows['filtered']} filtered + "
        f"{rows['failed']} failed ({outcome.worked_on} worked on, {updated}{outcome.unchanged} unchanged)"
    )
    for line in outcome.input.lines():
        typer.echo(line)


def _add_features(layout: Layout, stages: list[str], overrides: list[str], *, progress: bool, as_json: bool) -> None:
    from pipeline.curation.features import add_features
    from pipeline.models.store import ModelStore

    if not stages:
        fail(f"{layout.url} is a dataset: name the features to add, such as --add latents,ssl", USAGE_PROBLEM)
    done: Addition = _interruptible(add_features, layout.url, stages, overrides, ModelStore(), progress=progress)
    if as_json:
        print_json(asdict(done))
        return
    failed = sum(failure.rows for failure in done.failures)
    typer.echo(
        f"{layout.url}: {', '.join(done.features)} of {done.rows} rows "
        f"({done.worked_on} worked on now, {failed} failed)"
    )
    for failure in done.failures:
        typer.echo(f"  {failure.rows} {failure.stage} {failure.reason}: {failure.message}")


def _curate(settings: "CurateConfig", **options: bool) -> "Outcome":
    from pipeline.curation.curate import curate
    from pipeline.models.store import ModelStore

    return _interruptible(curate, settings, ModelStore(), **options)


def _interruptible(run: Any, *args: Any, **kwargs: Any) -> Any:
    with guarded("interrupted; run the same command again to continue from what is committed"):
        return run(*args, **kwargs)
