"""The plan and the configuration that a dataset was last written with, saved so that commands need not repeat them.

Paths are saved as absolute paths together with the dataset's location. So they are valid from any working directory,
and can still be resolved if the dataset was moved together with files near it, such as its songs or a codec. Nothing is
near a dataset in a bucket: there paths are taken as they were saved.
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
from schemas.storage.location import absolute
from schemas.storage.options import StorageOptions, scheme
from stages.base import Params
from stages.registry import stage_class


def is_dataset(layout: Layout) -> bool:
    """Whether a run has created a dataset, even if it has no rows yet."""
    return layout.store.exists(layout.plan) or layout.store.exists(layout.config)


def remember_plan(layout: Layout, plan: Plan) -> None:
    """Save the plan; called just before the first commit, so that a run that fails to start changes nothing."""
    placed = plan if plan.root else plan.model_copy(update={"root": _folder(layout.url)})
    _write(layout, layout.plan, placed.model_dump_json(indent=2))


def planned_settings(
    dataset: str, plan: Plan, stages: Collection[StagePlan], given: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Stage -> its planned engine and parameters, with paths resolved to existing files.

    Args:
        dataset: where the dataset is now, a folder or a URL.
        plan: the dataset's plan.
        stages: the stages of the plan to return.
        given: STAGE.PARAM of parameters that the user overrides; their paths need not exist.

    Raises:
        DataProblem: a file or folder exists neither at its saved path nor at the same place relative to the dataset.
    """
    settings = {}
    for stage in stages:
        names = _paths(stage.name, stage.engine, stage.params)
        wanted = {name: what for name in names if (what := f"{stage.name}.{name}") not in given}
        paths = {name: _place(dataset, what, stage.params[name], plan.root) for name, what in wanted.items()}
        settings[stage.name] = {"engine": stage.engine, **stage.params, **paths}
    return settings


def relocated(plan: Plan, layout: Layout) -> Plan:
    """The plan with its root and paths updated to the dataset's current location, where the files exist there."""
    columns = {}
    for column, stage in plan.columns.items():
        params = dict(stage.params)
        for name in _paths(stage.name, stage.engine, params):
            with suppress(DataProblem):
                params[name] = _place(layout.url, name, params[name], plan.root)
        columns[column] = stage.model_copy(update={"params": params})
    return plan.model_copy(update={"columns": columns, "root": _folder(layout.url)})


def remember_config(layout: Layout, config: CurateConfig, dag: Dag) -> None:
    """Save a configuration, with absolute paths, since the next command may run in another working directory."""
    local = {} if "://" in config.input.path else {"path": str(Path(config.input.path).absolute())}
    stages = {node.name: StageConfig(engine=node.engine, **_given(node.params)) for node in dag.nodes}
    update: dict[str, Any] = {
        "input": config.input.model_copy(update=local),
        "output": layout.url,
        "lyrics": None,  # already merged into a stage's parameters
        "stages": stages,
    }
    _write(layout, layout.config, config.model_copy(update=update).model_dump_json(indent=2))


def change_gates(layout: Layout, plan: Plan) -> None:
    """Set the thresholds of the saved configuration, if there is one, to those of the plan."""
    if layout.store.exists(layout.config):
        config = _read(layout)
        others = {column: bounds for column, bounds in config.gates.items() if column not in plan.columns}
        changed = config.model_copy(update={"gates": others | plan.gates})
        _write(layout, layout.config, changed.model_dump_json(indent=2))


def remembered_config(layout: Layout) -> CurateConfig:
    """The saved configuration of the last run, with paths resolved to existing files.

    Raises:
        DataProblem: no valid configuration is saved, or a file or folder it names is gone.
    """
    config = _read(layout)
    before = Path(config.output) if Path(config.output).is_absolute() else None
    stages = {}
    for name, stage in config.stages.items():
        params = stage.params
        paths = {p: _place(layout.url, f"{name}.{p}", params[p], before) for p in _paths(name, stage.engine, params)}
        stages[name] = StageConfig(engine=stage.engine, **{**params, **paths})
    source = config.input.path
    if "://" not in source:
        source = _place(layout.url, "its songs", source, before)
    update: dict[str, Any] = {
        "input": config.input.model_copy(update={"path": source}),
        "output": layout.url,
        "lyrics": None,
        "stages": stages,
        # A copy of a dataset is elsewhere; how that place is reached, the environment says.
        "storage": config.storage if config.output == layout.url else StorageOptions(),
    }
    return config.model_copy(update=update)


def _read(layout: Layout) -> CurateConfig:
    if not layout.store.exists(layout.config):
        raise DataProblem(
            f"{layout.url} has no saved configuration; run the full command again: "
            "songmill curate INPUT --out DATASET ..."
        )
    try:
        return CurateConfig.model_validate_json(layout.store.get(layout.config))
    except ValidationError as error:
        raise DataProblem(
            f"{layout.url}/{layout.config}: {error}; delete it and run the full curate command again"
        ) from error


def _write(layout: Layout, name: str, text: str) -> None:
    content = text.encode()
    if not layout.store.exists(name) or layout.store.get(name) != content:
        layout.store.publish({name: content})


def _given(params: Params) -> dict[str, Any]:
    """Parameters to save. Default paths are left out since they are inside the songmill installation, which may move.

    Parameters that do not affect results (a server's address, a limit) are not in a plan, but the next run needs them.
    """
    fields = type(params).model_fields
    own = {name for name, field in fields.items() if isinstance(field.default, Path)}
    outside = {name: getattr(params, name) for name in params.model_fields_set if fields[name].exclude}
    return params.model_dump(mode="json", exclude=own - params.model_fields_set) | outside


def _paths(stage: str, engine: str | None, params: Mapping[str, Any]) -> Iterator[str]:
    """Names of the parameters of a stage that are paths and not the default."""
    try:
        fields = stage_class(stage, engine).Params.model_fields
    except (KeyError, ImportError, AttributeError, TypeError):
        return  # build_dag reports what is wrong
    for name, field in fields.items():
        is_path = Path in (field.annotation, *get_args(field.annotation))
        if is_path and params.get(name) and params[name] != str(field.default):
            yield name


def _folder(place: str) -> Path | None:
    """The folder of a dataset, whose neighbours may have moved with it; None of one in a bucket."""
    return None if scheme(place) else Path(absolute(place))


def _place(dataset: str, what: str, path: str, before: Path | None) -> str:
    """Resolve a path that was saved when the dataset's folder was `before`.

    Args:
        dataset: where the dataset is now.
        what: the path is of, for messages.
        path: as it was saved.
        before: None if the dataset was in a bucket, or has not moved.

    Raises:
        DataProblem: it does not exist.
    """
    now, places = _folder(dataset), [path]
    if now is not None and before is not None and now != before:
        places = [*dict.fromkeys([os.path.normpath(now / os.path.relpath(path, before)), path])]
    for place in places:
        if _is_there(place):
            return place
    raise DataProblem(
        f"{dataset}: {what} should be at {' or '.join(places)}, but nothing is there. Put it back, or run the full "
        "command again with its current path"
    )


def _is_there(path: str) -> bool:
    """Whether a path exists; for a glob, whether the folder of its fixed prefix exists."""
    start, *glob = re.split(r"[*?\[]", path, maxsplit=1)
    return Path(path).exists() or (bool(glob) and Path(start).parent.is_dir())
