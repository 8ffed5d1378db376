"""The plan of a run: everything that determines a dataset's content. It is saved with the dataset.

A later run with another plan is refused unless it asks for an update.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from pipeline.models.errors import ModelMissing, UnknownModel, WrongBytes
from pipeline.models.store import ModelStore
from pipeline.planning.dag import Dag, Node, Stored, build_dag, wanted_models
from pipeline.planning.dependencies import missing_libraries, missing_libraries_message
from schemas.config import CurateConfig, DedupConfig, Thresholds
from schemas.dataset import SCHEMA_VERSION
from stages.base import Weights
from stages.registry import default_engine

_NO_DIGEST = ""  # digest of a model that is not in the store


class StagePlan(BaseModel):
    """One stage as planned."""

    name: str
    engine: str
    params: dict[str, Any]
    reads: list[str]
    working: list[str]
    models: dict[str, str]  # entry -> digest
    resources: dict[str, float]
    fingerprint: str


class Plan(BaseModel):
    """Everything that determines a dataset's content; input and resources are not part of it."""

    schema_version: int = SCHEMA_VERSION
    profile: str
    columns: dict[str, StagePlan]
    gates: dict[str, Thresholds]
    dedup: DedupConfig | None
    require_license: list[str] | None = None
    root: Path | None = None  # the dataset's folder when this was written; files that parameters name may move with it

    @property
    def id(self) -> str:
        """Short hash of what determines the content: fingerprints, thresholds, deduplication, licences, schema."""
        content = {
            "schema_version": self.schema_version,
            "columns": {column: stage.fingerprint for column, stage in sorted(self.columns.items())},
            "gates": self.gates,
            "dedup": _dedup(self.dedup),
            **({"require_license": sorted(self.require_license)} if self.require_license is not None else {}),
        }
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()

    def differences(self, other: "Plan") -> list[str]:
        """Changes from this plan to `other`, one line each."""
        lines = []
        for column in sorted({*self.columns, *other.columns}):
            before, after = self.columns.get(column), other.columns.get(column)
            if before is None or after is None:
                lines.append(f"{'+' if after else '-'} column {column}")
            elif before.fingerprint != after.fingerprint:
                lines.append(f"~ column {column}: {_stage_change(before, after)}")
        lines += _changes("gate", _flat(self.gates), _flat(other.gates))
        lines += _changes("dedup", _dedup(self.dedup), _dedup(other.dedup))
        if self.require_license != other.require_license:
            lines.append(f"~ require_license: {self.require_license} -> {other.require_license}")
        if self.schema_version != other.schema_version:
            lines.append(f"~ schema version {self.schema_version} -> {other.schema_version}")
        return lines


def make_dag(config: CurateConfig, store: ModelStore, stored: Mapping[str, Stored] = MappingProxyType({})) -> Dag:
    """The validated DAG of a configuration with the store's models; `stored` are columns the dataset already has.

    Raises:
        DagError: see `pipeline.planning.dag.build_dag`; also if a library is not installed.
    """
    missing = missing_libraries(config)
    problems = [missing_libraries_message(missing, config, store)] if missing else []
    return build_dag(config, *_find_models(config, store), stored, problems)


def draft_dag(config: CurateConfig, store: ModelStore) -> tuple[Dag, dict[str, str]]:
    """The DAG as if the store had every model; its fingerprints are not final.

    Returns:
        The DAG, and for each missing model the message that says how to get it.

    Raises:
        DagError: as `make_dag`, except for missing models and libraries.
    """
    models, missing = _find_models(config, store)
    lacking = {name: Weights(name, Path(), _NO_DIGEST) for name in missing}
    return build_dag(config, models | lacking, {}), missing


def check_dag(config: CurateConfig) -> None:
    """Validate a configuration without checking that its models and libraries are installed.

    Raises:
        DagError: as `draft_dag`.
    """
    build_dag(config, {name: Weights(name, Path(), _NO_DIGEST) for name in wanted_models(config)}, {})


def weights_bytes(dag: Dag, store: ModelStore) -> dict[str, int | None]:
    """Stage -> bytes of its models' files, a lower bound of their memory; None if unknown before the download."""
    sizes = {node.name: [_bytes(weights, store) for weights in node.weights.values()] for node in dag.nodes}
    return {stage: None if None in found else sum(filter(None, found)) for stage, found in sizes.items()}


def _bytes(weights: Weights, store: ModelStore) -> int | None:
    if weights.digest != _NO_DIGEST:
        return sum(file.stat().st_size for file in weights.path.rglob("*") if file.is_file())
    sizes = [file.size for file in store.entry(weights.name).files]
    return None if None in sizes else sum(filter(None, sizes))


def _find_models(config: CurateConfig, store: ModelStore) -> tuple[dict[str, Weights], dict[str, str]]:
    """Verified store entries that stages need, and for each missing one the message that says how to get it."""
    models, missing = {}, {}
    for name in wanted_models(config):
        try:
            models[name] = store.resolve(name)
        except (ModelMissing, UnknownModel, WrongBytes) as error:
            missing[name] = str(error)
    return models, missing


def make_plan(config: CurateConfig, dag: Dag) -> Plan:
    """The plan of a validated DAG."""
    return Plan(
        profile=config.profile,
        columns={node.column: _stage_plan(node, _written(dag)) for node in dag.nodes},
        gates={column: bounds for column, bounds in config.gates.items() if column in dag.column_types},
        dedup=config.dedup,
        require_license=config.input.require_license,
    )


def extended(plan: Plan, nodes: Collection[Node], dag: Dag) -> Plan:
    """The plan with these nodes' columns added or replaced."""
    written = _written(dag) | plan.columns.keys()
    return plan.model_copy(
        update={"columns": {**plan.columns, **{node.column: _stage_plan(node, written) for node in nodes}}}
    )


def _written(dag: Dag) -> set[str]:
    return {column for node in dag.nodes for column in (node.column, *node.stage_type.working)}


def _stage_plan(node: Node, written: Collection[str]) -> StagePlan:
    stage = node.stage_type
    return StagePlan(
        name=node.name,
        engine=node.engine or default_engine(node.name),
        params=node.params.model_dump(mode="json"),
        reads=[*stage.reads, *(column for column in stage.reads_if_present if column in written)],
        working=list(stage.working),
        models={name: weights.digest for name, weights in node.weights.items()},
        resources={**asdict(stage.resources), "gpus": node.gpus},
        fingerprint=node.fingerprint,
    )


def _stage_change(before: StagePlan, after: StagePlan) -> str:
    changes = [f"engine {before.engine} -> {after.engine}"] if before.engine != after.engine else []
    changes += _changes("", before.params, after.params)
    changes += _changes("model", before.models, after.models)
    return ", ".join(change.removeprefix("~ ").strip() for change in changes) or "its revision, files or inputs changed"


def _changes(what: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [
        f"~ {what} {key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _flat(gates: dict[str, Thresholds]) -> dict[str, Any]:
    return {f"{column}.{name}": bound for column, bounds in gates.items() for name, bound in bounds.items()}


def _dedup(dedup: DedupConfig | None) -> dict[str, Any]:
    return dedup.model_dump() if dedup else {}
