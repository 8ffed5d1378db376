"""The DAG of features that are made of the rows of a finished dataset: beside its shards, or in every batch."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.dataset.saved_config import planned_settings
from pipeline.errors import DataProblem, UsageProblem
from pipeline.models.store import ModelStore
from pipeline.planning.config import build_addition
from pipeline.planning.dag import Dag, Stored
from pipeline.planning.plan import Plan, StagePlan, make_dag
from schemas.config import CurateConfig, ResourceConfig
from schemas.dataset import FEATURES
from stages.base import Stage
from stages.registry import stage_class


class AdditionError(DataProblem):
    """A dataset that features cannot be added to; the message says what to do."""


@dataclass(frozen=True)
class FeatureDag:
    """What makes some features.

    Attributes:
        dag: their stages, and those of the dataset's plan that make what they read, such as PCM.
        resources: to run them with.
    """

    dag: Dag
    resources: ResourceConfig


def build_feature_dag(
    dataset: Path,
    plan: Plan,
    shard: pa.Schema,
    names: Sequence[str],
    overrides: Iterable[str],
    store: ModelStore,
    *,
    as_planned: bool = False,
) -> FeatureDag:
    """Check and order the stages of some features of a dataset.

    Args:
        dataset: its folder.
        plan: what it was made by.
        shard: what its rows bring along.
        names: of stages that own a feature.
        overrides: `stage.param=value` or `resources.key=value`.
        store: where the models lie.
        as_planned: features that the plan has are made as it says, unless `overrides` say otherwise; else all are made
            as its profile says.

    Raises:
        UsageProblem: a stage whose column lies in the shards, or one that does not fit.
        AdditionError: a stage that makes what they read is not what it was.
    """
    overrides = [*overrides]
    known = [stage for stage in plan.columns.values() if as_planned and stage.name in names]
    new = [name for name in names if name not in {stage.name for stage in known}]
    given = {override.partition("=")[0].strip() for override in overrides}
    settings = planned_settings(dataset, plan, known, given)
    config = build_addition(dataset, plan.profile, settings, add=new, overrides=overrides)
    makers = _makers([_feature_stage(name, config) for name in names], plan)
    settings |= planned_settings(dataset, plan, makers, given)
    config = build_addition(dataset, plan.profile, settings, add=new, overrides=overrides)
    stored = {
        column: Stored(shard.field(column).type, stage.fingerprint)
        for column, stage in plan.columns.items()
        if column in shard.names
    }
    dag = make_dag(config, store, stored)
    _check_unchanged(dag, plan, {stage.name for stage in makers})
    return FeatureDag(dag, config.resources)


def _feature_stage(name: str, config: CurateConfig) -> type[Stage]:
    try:
        stage = stage_class(name, config.stages[name].engine)
    except (KeyError, ImportError, AttributeError, TypeError) as error:
        raise UsageProblem(f"stage {name!r}: {error.args[0] if error.args else error}") from error
    if stage.column not in FEATURES:
        raise UsageProblem(
            f"column {stage.column!r} lies in the shards, which --add DATASET leaves as they are; it makes "
            f"{', '.join(FEATURES)}. Give the command that made the dataset --add {name} --update instead"
        )
    return stage


def _makers(added: Iterable[type[Stage]], plan: Plan) -> list[StagePlan]:
    """Stages of the plan that make working columns, such as PCM, for the added ones and for each other."""
    wanted = {column for stage in added for column in (*stage.reads, *stage.reads_if_present)}
    makers: dict[str, StagePlan] = {}
    while new := [s for s in plan.columns.values() if s.name not in makers and wanted & {*s.working}]:
        makers |= {stage.name: stage for stage in new}
        wanted |= {column for stage in new for column in stage.reads}
    return list(makers.values())


def _check_unchanged(dag: Dag, plan: Plan, makers: Collection[str]) -> None:
    for node in dag.nodes:
        if node.name in makers and node.fingerprint != plan.columns[node.column].fingerprint:
            raise AdditionError(
                f"stage {node.name!r} is not what it was when the dataset was made: its revision, parameters or models "
                "have changed. Bring the dataset up to date with the command that made it and --update first"
            )
