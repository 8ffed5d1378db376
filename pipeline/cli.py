"""The `songmill` command. Data goes to stdout, progress and errors to stderr; exit code 0 fine, 1 data, 2 usage.

Commands import what they need when they run: Ray, torch, DuckDB and Arrow take seconds that `--help` would pay for.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pipeline.commands.doctor import doctor_command
from pipeline.commands.exit_codes import DATA_PROBLEM, USAGE_PROBLEM, Commands, fail, guarded
from pipeline.commands.explore import explore_command
from pipeline.commands.export import app as export_app
from pipeline.commands.forget import forget_command
from pipeline.commands.lyrics import app as lyrics_app
from pipeline.commands.models import app as models_app
from pipeline.commands.quarantine import quarantine_command
from pipeline.commands.sample import sample_command
from pipeline.commands.train import app as train_app
from pipeline.commands.train_autoencoder import autoencoder_command
from pipeline.commands.train_speaker import speaker_command
from pipeline.commands.ui import ui_command
from pipeline.commands.whatif import whatif_command
from pipeline.console.escaping import ProtectedApp

if TYPE_CHECKING:
    from pipeline.curation.curate import Outcome
    from pipeline.curation.features import Addition
    from pipeline.curation.pilot import Pilot
    from schemas.config import CurateConfig

app = ProtectedApp(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(models_app, name="models")
app.command("doctor")(doctor_command)
app.command("explore")(explore_command)
app.command("whatif")(whatif_command)
app.command("quarantine")(quarantine_command)
app.command("forget")(forget_command)
app.add_typer(lyrics_app, name="lyrics")
app.add_typer(export_app, name="export")
train_app.command("autoencoder")(autoencoder_command)
train_app.command("speaker")(speaker_command)
app.add_typer(train_app, name="train")
app.command("sample")(sample_command)
app.command("ui")(ui_command)

Source = Annotated[str | None, typer.Argument(help="Folder, glob or manifest (.jsonl .csv .parquet); local or a URI.")]
Out = Annotated[Path | None, typer.Option("--out", help="Dataset folder.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML with any of input, output, stages, gates ...")]
Profile = Annotated[str | None, typer.Option("--profile", help="small (two CPU cores) or full (GPUs).")]
Lyrics = Annotated[
    Path | None, typer.Option("--lyrics", help="Lyric library: Parquet with id, title, artist, text ...")
]
Only = Annotated[str, typer.Option("--stages", help="Comma-separated stages to run instead of the profile's.")]
Add = Annotated[str, typer.Option("--add", help="Comma-separated stages to run besides, such as latents,ssl,preview.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="stage.param=value or column.min_field=value; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Dataset = Annotated[Path, typer.Argument(help="Dataset folder.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"songmill {version('songmill')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say on stderr what is done; -vv every detail.")
    ] = 0,
    log_file: Annotated[Path | None, typer.Option("--log-file", help="Add every detail to this file.")] = None,
) -> None:
    """The open-source refinery for music AI: raw songs in, training-ready Parquet shards out.

    Options of all commands come before the command: [bold]songmill -v --log-file run.log curate songs/ --out dataset[/]
    """
    from pipeline.console.logs import logged

    context.with_resource(logged(verbose, log_file))


@app.command("curate")
def curate_command(
    source: Source = None,
    out: Out = None,
    config: ConfigFile = None,
    profile: Profile = None,
    lyrics: Lyrics = None,
    stages: Only = "",
    add: Add = "",
    overrides: Overrides = None,
    license: Annotated[str | None, typer.Option(help="SPDX id or URL of songs that name none.")] = None,
    origin: Annotated[str | None, typer.Option("--source", help="Source of songs that name none.")] = None,
    require_license: Annotated[
        list[str] | None, typer.Option(help="SPDX id, family (CC-BY) or unknown that is kept; may be repeated.")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Make columns anew whose plan has changed.")] = False,
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Let rows leave whose files are gone; else they stay as they are.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn songs into shards. The same command again does only what is left.

    A song that was moved or renamed is known by its bytes, and its row follows it.

    Given a dataset alone, go on with the settings that it was last written with. With --add, make these features of its
    rows, beside shards that stay as they are.

    [bold]Examples[/]

      songmill curate songs/ --out dataset

      songmill curate manifest.jsonl --out dataset --lyrics library.parquet --set quality.min_bandwidth_hz=15000

      songmill curate --config run.yaml --update

      songmill curate dataset

      songmill curate songs/ --out dataset --drop-missing

      songmill curate --add latents,ssl --set latents.codec=ACE-Step dataset
    """
    from pipeline.dataset.saved_config import is_dataset, remembered_config
    from pipeline.planning.config import build_config
    from schemas.dataset import Layout

    if source and out is None and config is None and is_dataset(Layout(Path(source))):
        if stages or profile or lyrics or license or origin or require_license or update:
            fail(f"{source} is a dataset: to add features to it give --add and --set alone", USAGE_PROBLEM)
        if drop_missing and (add or overrides):
            fail("--drop-missing goes without --add: drop first, then add", USAGE_PROBLEM)
        if add or overrides:
            _add_features(Path(source), _names(add), overrides or [], progress=not quiet, as_json=as_json)
            return
        settings = remembered_config(Layout(Path(source).resolve()))
    elif source and out is None and config is None:
        fail(
            f"{source} is no dataset that could go on by itself: say where the songs go, "
            f"songmill curate {source} --out DATASET, or where it was begun give that whole command again",
            USAGE_PROBLEM,
        )
    else:
        settings = build_config(
            file=config,
            profile=profile,
            only=_names(stages),
            add=_names(add),
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
        _print_json(done | outcome.stats.model_dump())
        return
    rows = outcome.stats.rows
    updated = f"{outcome.updated} updated, " if outcome.updated else ""
    typer.echo(
        f"{settings.output}: {rows['total']} rows = {rows['kept']} kept + {rows['filtered']} filtered + "
        f"{rows['failed']} failed ({outcome.worked_on} worked on, {updated}{outcome.unchanged} unchanged)"
    )
    for line in outcome.input.lines():
        typer.echo(line)


@app.command("plan")
def plan_command(
    source: Source = None,
    config: ConfigFile = None,
    profile: Profile = None,
    lyrics: Lyrics = None,
    stages: Only = "",
    add: Add = "",
    overrides: Overrides = None,
    pilot: Annotated[int, typer.Option(min=0, help="Run so many songs and say what 1,000 hours would cost.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show the checked DAG: stages, columns, models, resources, fused operators. Starts nothing without --pilot.

    Models and libraries that are missing are listed at the end, with exit code 2; fingerprints are not final before the
    models are there. Given a dataset alone, the plan of the settings that it was last written with.

    [bold]Examples[/]

      songmill plan --profile small --add ssl --set rhythm.engine=beat-this

      songmill plan songs/ --profile full --pilot 20
    """
    from pipeline.dataset.saved_config import is_dataset, remembered_config
    from pipeline.models.store import ModelStore
    from pipeline.planning.config import build_config
    from pipeline.planning.dependencies import lack_of, missing_libraries
    from pipeline.planning.plan import draft_dag, make_plan, weights_bytes
    from pipeline.view.terminal import show_pilot, show_plan
    from schemas.dataset import Layout
    from stages.libraries import how_to_install

    if pilot and not (source or config):
        fail("a pilot needs songs: songmill plan SONGS --pilot 20", USAGE_PROBLEM)
    asked = any((config, profile, lyrics, stages, add, overrides, pilot))
    if source and not asked and is_dataset(Layout(Path(source))):
        settings = remembered_config(Layout(Path(source).resolve()))
    else:
        named = bool(config and pilot)  # a pilot runs, so the file names songs and output; a plan is content without
        settings = build_config(
            file=config,
            profile=profile,
            only=_names(stages),
            add=_names(add),
            overrides=overrides or [],
            input=source or (None if named else "songs"),
            output=None if named else Path("dataset"),
            lyrics=lyrics,
        )
    store = ModelStore()
    dag, missing = draft_dag(settings, store)
    libraries = missing_libraries(settings)
    plan = make_plan(settings, dag)
    found = _pilot(settings, pilot) if pilot and not (missing or libraries) else None
    sizes = weights_bytes(dag, store)
    if as_json:
        told = {"id": plan.id, **plan.model_dump(), "operators": [[n.name for n in group] for group in dag.operators]}
        told |= {"scan": [node.name for node in dag.scan], "weights_bytes": sizes, "missing": missing}
        told |= {"missing_libraries": {library.package: how_to_install([library]) for library in libraries}}
        _print_json(told | ({"pilot": found.model_dump()} if found else {}))
    else:
        show_plan(_console(), settings, dag, plan, sizes)
        if found:
            show_pilot(_console(), found)
    if problems := [*missing.values(), *([lack_of(libraries, settings, store)] if libraries else [])]:
        listed = "\n  - ".join(problems)
        fail(f"curate would refuse this plan:\n  - {listed}", USAGE_PROBLEM)


@app.command("inspect")
def inspect_command(
    dataset: Dataset,
    as_json: AsJson = False,
    sql: Annotated[str | None, typer.Option(help="Query over the views tracks and quarantine.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to see and hear the dataset by.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="With --html: rows to sample from all verdicts.")] = 100,
    seed: Annotated[int, typer.Option(help="With --html: another seed samples other rows.")] = 0,
    compare: Annotated[Path | None, typer.Option(help="Another dataset to show beside this one.")] = None,
) -> None:
    """Show what a dataset holds: counts, hours, verdicts, distributions, time in stages.

    [bold]Examples[/]

      songmill inspect dataset

      songmill inspect dataset --sql "select title, rhythm.bpm from tracks order by 2"

      songmill inspect dataset --html report.html --rows 50 --seed 7

      songmill inspect dataset --compare dataset-before
    """
    from pipeline.dataset.stats_cache import current_stats
    from pipeline.view.terminal import show_stats
    from schemas.dataset import Layout

    if sum(map(bool, (sql, html, compare))) > 1:
        fail("give one of --sql, --html and --compare", USAGE_PROBLEM)
    if html:
        from pipeline.commands.report import report  # here, for what decodes audio takes its time to import

        report(dataset, html, rows, seed, as_json=as_json)
        return
    if sql:
        _query(dataset, sql, as_json)
        return
    if compare:
        _compare(dataset, compare, as_json)
        return
    stats = current_stats(Layout(dataset))
    if as_json:
        _print_json(stats.model_dump())
    else:
        show_stats(_console(), str(dataset), stats)


@app.command("verify")
def verify_command(dataset: Dataset, as_json: AsJson = False) -> None:
    """Check a dataset: digests of all files, schemas, footers, every row counted once.

    [bold]Example[/]

      songmill verify dataset
    """
    from pipeline.dataset.verification import verify_dataset
    from schemas.dataset import Layout

    problems = verify_dataset(Layout(dataset))
    if as_json:
        _print_json({"problems": problems})
    else:
        typer.echo("\n".join(problems) if problems else f"{dataset}: all files and rows are as committed")
    raise typer.Exit(DATA_PROBLEM if problems else 0)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything it makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Train for a few steps only: all of it runs.")] = False,
) -> None:
    """From a few real songs, some of them broken or copies, to a new one: curate, train, sample. Six minutes.

    Shows every command before it runs it. The same command again goes on where it stopped. What comes out is compared
    with what was promised (songs kept and turned away and why, the lyrics found, a song that plays); where it differs
    the exit code is 1.

    [bold]Example[/]

      songmill models pull small demo && songmill demo --out demo
    """
    from pipeline.demo.input import prepare
    from pipeline.demo.story import QUICK, Demo, Pace
    from pipeline.models.store import ModelStore

    def songmill(arguments: Sequence[str]) -> int:
        return int(app(arguments, standalone_mode=False) or 0)

    given = prepare(out / "input", ModelStore())
    demo = Demo(out, given, QUICK if quick else Pace())
    raise typer.Exit(demo.tell(songmill, _console()))


def _add_features(dataset: Path, stages: list[str], overrides: list[str], *, progress: bool, as_json: bool) -> None:
    from pipeline.curation.features import add_features
    from pipeline.models.store import ModelStore

    if not stages:
        fail(f"{dataset} is a dataset: say what to make of it, such as --add latents,ssl", USAGE_PROBLEM)
    done: Addition = _interruptible(add_features, dataset, stages, overrides, ModelStore(), progress=progress)
    if as_json:
        _print_json(asdict(done))
        return
    failed = sum(failure.rows for failure in done.failures)
    typer.echo(
        f"{dataset}: {', '.join(done.features)} of {done.rows} rows ({done.worked_on} worked on now, {failed} failed)"
    )
    for failure in done.failures:
        typer.echo(f"  {failure.rows} {failure.stage} {failure.reason}: {failure.message}")


def _curate(settings: "CurateConfig", **options: bool) -> "Outcome":
    from pipeline.curation.curate import curate
    from pipeline.models.store import ModelStore

    return _interruptible(curate, settings, ModelStore(), **options)


def _pilot(settings: "CurateConfig", songs: int) -> "Pilot":
    from pipeline.curation.pilot import run_pilot
    from pipeline.models.store import ModelStore

    return run_pilot(settings, ModelStore(), songs)


def _interruptible(run: Any, *args: Any, **kwargs: Any) -> Any:
    with guarded("interrupted; the same command goes on from what is committed"):
        return run(*args, **kwargs)


def _query(dataset: Path, sql: str, as_json: bool) -> None:
    import duckdb

    from pipeline.dataset.saved_config import require_dataset
    from pipeline.dataset.stats import connect
    from schemas.dataset import Layout

    require_dataset(Layout(dataset))
    try:
        found = connect(Layout(dataset)).sql(sql)
        if as_json:
            _print_json(found.to_arrow_table().to_pylist() if found else [])
        elif found:
            found.show(max_width=max(80, _console().width))
    except duckdb.Error as error:
        fail(f"--sql: {error}", USAGE_PROBLEM)


def _compare(dataset: Path, other: Path, as_json: bool) -> None:
    from pipeline.commands.compare import show_comparison
    from pipeline.view.comparison import compare
    from schemas.dataset import Layout

    found = compare(Layout(dataset), Layout(other))
    if as_json:
        _print_json(found.model_dump())
    else:
        show_comparison(_console(), str(dataset), str(other), found)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _console() -> Console:
    """Wide enough for tables when the output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 160)


if __name__ == "__main__":
    app()
