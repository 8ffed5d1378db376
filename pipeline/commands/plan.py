"""`songmill plan`: the validated DAG of a run, and a cost estimate from a pilot."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.exit_codes import USAGE_PROBLEM, fail
from pipeline.commands.options import (
    Add,
    AsJson,
    ConfigFile,
    Lyrics,
    Only,
    Overrides,
    Profile,
    Source,
    dataset_in,
    split_names,
)
from pipeline.commands.output import print_json, wide_console
from schemas.dataset import Layout

if TYPE_CHECKING:
    from pipeline.curation.pilot import Pilot
    from schemas.config import CurateConfig


def plan_command(
    source: Source = None,
    config: ConfigFile = None,
    profile: Profile = None,
    lyrics: Lyrics = None,
    stages: Only = "",
    add: Add = "",
    overrides: Overrides = None,
    pilot: Annotated[int, typer.Option(min=0, help="Run this many songs and estimate the cost of 1,000 hours.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show the validated DAG: stages, columns, models, resources, fused operators. Runs nothing without --pilot.

    Missing models and libraries are listed at the end, with exit code 2; fingerprints are only final once the models
    are in the store. Given only a dataset, show the plan for the settings that it was last written with.

    [bold]Examples[/]

      songmill plan --profile small --add ssl --set rhythm.engine=beat-this

      songmill plan songs/ --profile full --pilot 20
    """
    from pipeline.dataset.saved_config import remembered_config
    from pipeline.models.store import ModelStore
    from pipeline.planning.config import build_config
    from pipeline.planning.dependencies import missing_libraries, missing_libraries_message
    from pipeline.planning.plan import draft_dag, make_plan, weights_bytes
    from pipeline.view.terminal import show_pilot, show_plan
    from schemas.storage.location import absolute
    from stages.libraries import how_to_install

    if pilot and not (source or config):
        fail("a pilot needs songs: songmill plan SONGS --pilot 20", USAGE_PROBLEM)
    asked = any((config, profile, lyrics, stages, add, overrides, pilot))
    dataset = dataset_in(source) if source and not asked else None
    if dataset:
        settings = remembered_config(Layout.at(absolute(dataset.url)))
    else:
        named = bool(config and pilot)  # a pilot runs, so the file has to name songs and output; a plan needs neither
        settings = build_config(
            file=config,
            profile=profile,
            only=split_names(stages),
            add=split_names(add),
            overrides=overrides or [],
            input=source or (None if named else "songs"),
            output=None if named else "dataset",
            lyrics=lyrics,
        )
    store = ModelStore()
    dag, missing = draft_dag(settings, store)
    libraries = missing_libraries(settings)
    plan = make_plan(settings, dag)
    found = _pilot(settings, pilot) if pilot and not (missing or libraries) else None
    sizes = weights_bytes(dag, store)
    if as_json:
        facts = {"id": plan.id, **plan.model_dump(), "operators": [[n.name for n in group] for group in dag.operators]}
        facts |= {"store_bytes_per_second": dag.store_bytes(1.0)}
        facts |= {"scan": [node.name for node in dag.scan], "weights_bytes": sizes, "missing": missing}
        facts |= {"missing_libraries": {library.package: how_to_install([library]) for library in libraries}}
        print_json(facts | ({"pilot": found.model_dump()} if found else {}))
    else:
        show_plan(wide_console(), settings, dag, plan, sizes)
        if found:
            show_pilot(wide_console(), found)
    if problems := [*missing.values(), *([missing_libraries_message(libraries, settings, store)] if libraries else [])]:
        listed = "\n  - ".join(problems)
        fail(f"curate would refuse this plan:\n  - {listed}", USAGE_PROBLEM)


def _pilot(settings: "CurateConfig", songs: int) -> "Pilot":
    from pipeline.curation.pilot import run_pilot
    from pipeline.models.store import ModelStore

    return run_pilot(settings, ModelStore(), songs)
