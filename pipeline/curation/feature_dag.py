"""The DAG that computes features from a finished dataset, into files beside its shards or for training batches."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

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
    """Features cannot be added to this dataset; the message names the fix."""


@dataclass(frozen=True)
class FeatureDag:
    """The stages needed to compute some features.

    Attributes:
        dag: the features' stages, and the stages of the dataset's plan that write their inputs, such as PCM.
        resources: resources to run them with.
    """

    dag: Dag
    resources: ResourceConfig


def build_feature_dag(
    dataset: str,
    plan: Plan,
    shard: pa.Schema,
    names: Sequence[str],
    overrides: Iterable[str],
    store: ModelStore,
    *,
    as_planned: bool = False,
) -> FeatureDag:
    """Validate and order the stages that compute some features of a dataset.

    Args:
        dataset: where it is, a folder or a URL.
        plan: the plan it was made with.
        shard: schema of its shards, whose columns the stages may read.
        names: names of stages that own a feature.
        overrides: `stage.param=value` or `resources.key=value`.
        store: the model store.
        as_planned: compute features that are in the plan with the plan's settings unless `overrides` change them; by
            default all features use the settings of the dataset's profile.

    Raises:
        UsageProblem: a stage's column is stored in the shards, or a stage is unknown or invalid.
        AdditionError: a stage that writes their inputs has changed since the dataset was made.
    """
    overrides = [*overrides]
    known = [stage for stage in plan.columns.values() if as_planned and stage.name in names]
    new = [name for name in names if name not in {stage.name for stage in known}]
    given = {override.partition("=")[0].strip() for override in overrides}
    settings = planned_settings(dataset, plan, known, given)
    config = build_addition(dataset, plan.profile, settings, add=new, overrides=overrides)
    producers = _producers([_feature_stage(name, config) for name in names], plan)
    settings |= planned_settings(dataset, plan, producers, given)
    config = build_addition(dataset, plan.profile, settings, add=new, overrides=overrides)
    stored = {
        column: Stored(shard.field(column).type, stage.fingerprint)
        for column, stage in plan.columns.items()
        if column in shard.names
    }
    dag = make_dag(config, store, stored)
    _check_unchanged(dag, plan, {stage.name for stage in producers})
    return FeatureDag(dag, config.resources)


def _feature_stage(name: str, config: CurateConfig) -> type[Stage]:
    try:
        stage = stage_class(name, config.stages[name].engine)
    except (KeyError, ImportError, AttributeError, TypeError) as error:
        raise UsageProblem(f"stage {name!r}: {error.args[0] if error.args else error}") from error
    if stage.column not in FEATURES:
        raise UsageProblem(
            f"column {stage.column!r} is stored in the shards, which --add DATASET does not change; it can add "
            f"{', '.join(FEATURES)}. Run the command that made the dataset with --add {name} --update instead"
        )
    return stage


def _producers(added: Iterable[type[Stage]], plan: Plan) -> list[StagePlan]:
    """Stages of the plan that write working columns, such as PCM, for the added stages and for each other."""
    wanted = {column for stage in added for column in (*stage.reads, *stage.reads_if_present)}
    producers: dict[str, StagePlan] = {}
    while new := [s for s in plan.columns.values() if s.name not in producers and wanted & {*s.working}]:
        producers |= {stage.name: stage for stage in new}
        wanted |= {column for stage in new for column in stage.reads}
    return list(producers.values())


def _check_unchanged(dag: Dag, plan: Plan, producers: Collection[str]) -> None:
    for node in dag.nodes:
        if node.name in producers and node.fingerprint != plan.columns[node.column].fingerprint:
            raise AdditionError(
                f"stage {node.name!r} has changed since the dataset was made: its revision, parameters or models "
                "differ. First update the dataset: run the command that made it with --update"
            )
