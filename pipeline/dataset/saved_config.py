"""The plan and the settings that a dataset was last written with: work on it goes on without being told them again.

Paths are written down absolute, with the place that the dataset had then. So they lead on from any folder, and also
when the dataset and what lies around it, such as its songs or a codec, have moved together.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from pipeline.errors import DataProblem
from pipeline.planning.dag import Dag
from pipeline.planning.plan import Plan, StagePlan
from schemas.config import CurateConfig, StageConfig
from schemas.dataset import Layout
from schemas.files import write_durably
from stages.base import Params
from stages.registry import stage_class


def is_dataset(layout: Layout) -> bool:
    """Whether a folder is one that a run has begun, with or without rows so far."""
    return layout.plan.is_file() or layout.config.is_file()


def remember_plan(layout: Layout, plan: Plan) -> None:
    """Write the plan down, before its first commit: a run that cannot start leaves a dataset as it was."""
    placed = plan if plan.root else plan.model_copy(update={"root": layout.root})
    _write(layout.plan, placed.model_dump_json(indent=2))


def planned_settings(
    dataset: Path, plan: Plan, stages: Collection[StagePlan], given: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Stage -> its engine and parameters as planned, with paths that lead somewhere.

    Args:
        dataset: its folder, where it lies now.
        plan: the dataset's.
        stages: some of it.
        given: STAGE.PARAM of parameters that the user gives anew, so that nobody needs these.

    Raises:
        DataProblem: a file or folder is neither where it was nor where the dataset has moved to.
    """
    now = dataset.resolve()
    settings = {}
    for stage in stages:
        names = _paths(stage.name, stage.engine, stage.params)
        wanted = {name: what for name in names if (what := f"{stage.name}.{name}") not in given}
        paths = {name: _place(what, stage.params[name], plan.root or now, now) for name, what in wanted.items()}
        settings[stage.name] = {"engine": stage.engine, **stage.params, **paths}
    return settings


def relocated(plan: Plan, layout: Layout) -> Plan:
    """A dataset's plan with its paths as they are where it lies now, as far as they lead anywhere."""
    columns = {}
    for column, stage in plan.columns.items():
        params = dict(stage.params)
        for name in _paths(stage.name, stage.engine, params):
            with suppress(DataProblem):
                params[name] = _place(name, params[name], plan.root or layout.root, layout.root)
        columns[column] = stage.model_copy(update={"params": params})
    return plan.model_copy(update={"columns": columns, "root": layout.root})


def remember_config(layout: Layout, config: CurateConfig, dag: Dag) -> None:
    """Write a configuration down, with absolute paths, for the next command may be given elsewhere."""
    local = {} if "://" in config.input.path else {"path": str(Path(config.input.path).absolute())}
    stages = {node.name: StageConfig(engine=node.engine, **_given(node.params)) for node in dag.nodes}
    update: dict[str, Any] = {
        "input": config.input.model_copy(update=local),
        "output": layout.root,
        "lyrics": None,  # it is the parameter of a stage by now
        "stages": stages,
    }
    _write(layout.config, config.model_copy(update=update).model_dump_json(indent=2))


def change_gates(layout: Layout, plan: Plan) -> None:
    """Let the remembered configuration, if there is one, have the thresholds of a plan."""
    if layout.config.is_file():
        config = _read(layout)
        others = {column: bounds for column, bounds in config.gates.items() if column not in plan.columns}
        changed = config.model_copy(update={"gates": others | plan.gates})
        _write(layout.config, changed.model_dump_json(indent=2))


def remembered_config(layout: Layout) -> CurateConfig:
    """The configuration of the last run.

    Raises:
        DataProblem: the dataset remembers none, or what it names has gone.
    """
    config, now = _read(layout), layout.root.resolve()
    before = config.output if config.output.is_absolute() else now
    stages = {}
    for name, stage in config.stages.items():
        params = stage.params
        paths = {p: _place(f"{name}.{p}", params[p], before, now) for p in _paths(name, stage.engine, params)}
        stages[name] = StageConfig(engine=stage.engine, **{**params, **paths})
    source = config.input.path
    if "://" not in source:
        source = _place("its songs", source, before, now)
    update: dict[str, Any] = {
        "input": config.input.model_copy(update={"path": source}),
        "output": layout.root,
        "lyrics": None,
        "stages": stages,
    }
    return config.model_copy(update=update)


def _read(layout: Layout) -> CurateConfig:
    if not layout.config.is_file():
        raise DataProblem(
            f"{layout.root} does not remember how it was made; give the whole command once more: "
            "songmill curate INPUT --out DATASET ..."
        )
    try:
        return CurateConfig.model_validate_json(layout.config.read_bytes())
    except ValidationError as error:
        raise DataProblem(f"{layout.config}: {error}; delete it and give the whole curate command again") from error


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_bytes() != text.encode():
        write_durably(path, text.encode())


def _given(params: Params) -> dict[str, Any]:
    """Parameters without paths that are the default: they lie where songmill is installed, elsewhere tomorrow.

    Those that change no result (a server's address, a bound) are no part of a plan, but the next run needs them too.
    """
    fields = type(params).model_fields
    own = {name for name, field in fields.items() if isinstance(field.default, Path)}
    outside = {name: getattr(params, name) for name in params.model_fields_set if fields[name].exclude}
    return params.model_dump(mode="json", exclude=own - params.model_fields_set) | outside


def _paths(stage: str, engine: str | None, params: Mapping[str, Any]) -> Iterator[str]:
    """Parameters of a stage that are paths, other than its own files."""
    try:
        fields = stage_class(stage, engine).Params.model_fields
    except (KeyError, ImportError, AttributeError, TypeError):
        return  # the DAG says what is wrong with it
    for name, field in fields.items():
        is_path = Path in (field.annotation, *get_args(field.annotation))
        if is_path and params.get(name) and params[name] != str(field.default):
            yield name


def _place(what: str, path: str, before: Path, now: Path) -> str:
    """Where a path leads that was written down when the dataset lay at `before`, and lies at `now`.

    Raises:
        DataProblem: nowhere.
    """
    beside = os.path.normpath(now / os.path.relpath(path, before))
    places = dict.fromkeys([beside, path] if now != before else [path])
    for place in places:
        if _is_there(place):
            return place
    raise DataProblem(
        f"{now} remembers {what} at {' or '.join(places)}, and nothing is there: put it back, or give the whole "
        "command again with the place where it is"
    )


def _is_there(path: str) -> bool:
    """Whether a file or a folder is there, or the folder that a glob begins with."""
    start, *glob = re.split(r"[*?\[]", path, maxsplit=1)
    return Path(path).exists() or (bool(glob) and Path(start).parent.is_dir())
