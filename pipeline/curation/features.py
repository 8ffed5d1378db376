"""Add features to a dataset: they are written to files beside its shards; the shards do not change.

The audio is decoded again. Each unit's feature files are committed together with its new record, and the plan is
written after the last unit, so that a killed run leaves a valid dataset in which some units have more features.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.console.library_output import others_logged
from pipeline.curation.feature_dag import AdditionError, build_feature_dag
from pipeline.curation.missing import waiting_units
from pipeline.curation.sink import UNIT, FeatureSink, FeatureSpec, WrittenFeatures
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.runs import recorded
from pipeline.dataset.saved_config import relocated, remember_plan
from pipeline.dataset.writing import describe_dataset, exclusive_lock
from pipeline.execution.cluster import check_placeable, cluster, run_pass
from pipeline.execution.metrics import Metrics
from pipeline.execution.operator import OperatorSpec
from pipeline.execution.rounds import in_rounds
from pipeline.execution.run_counts import RunCounts
from pipeline.ingest.identity import require_same_bytes
from pipeline.models.store import ModelStore
from pipeline.planning.dag import Dag, Node
from pipeline.planning.plan import Plan, extended
from schemas import columns
from schemas.commits import NO_PLAN, Commit
from schemas.config import ResourceConfig
from schemas.dataset import FEATURES, FOOTER_FINGERPRINTS, FOOTER_SHARD_DIGEST, Layout, folder_of
from schemas.storage.location import absolute
from schemas.storage.parquet import read_parquet, schema_of

_IDENTITY = ("row_id", "track_id", "uri")


@dataclass(frozen=True)
class Failure:
    """Rows that failed for one reason in one stage, with the message of the first of them."""

    stage: str
    reason: str
    rows: int
    message: str


@dataclass(frozen=True)
class Addition:
    """Result of a finished run.

    Attributes:
        features: the requested columns; every shard now has a file of each.
        rows: number of rows of all shards.
        worked_on: number of rows that this run processed.
        failures: those of them whose features are null, by stage and reason.
    """

    features: Sequence[str]
    rows: int
    worked_on: int
    failures: Sequence[Failure]


def add_features(
    dataset: str | Path, stages: Sequence[str], overrides: Iterable[str], store: ModelStore, *, progress: bool = True
) -> Addition:
    """Compute features for the kept rows of a dataset, in every unit that lacks them or has them from other stages.

    Afterwards the dataset's plan includes these stages, as if `curate` had been run with `--add`. Features are null for
    rows whose file is gone or has changed since it was curated, and for rows on which a stage fails.

    Args:
        dataset: what `curate` wrote, a folder or a URL.
        stages: names of stages that own a feature.
        overrides: `stage.param=value` or `resources.key=value`.
        store: the model store.
        progress: show live progress on stderr.

    Raises:
        UsageProblem: a stage's column is stored in the shards, or a stage is unknown or invalid.
        AdditionError: the dataset is unfinished, or stages of its plan have changed.
        DatasetLocked: another process is writing the dataset.
        PassFailed: a stage cannot start, or rows are unfinished after all rounds.
    """
    layout = Layout.at(absolute(str(dataset)))
    with exclusive_lock(layout):
        run = _prepare(layout, stages, overrides, store, progress)
        worked_on = run.bring_up_to_date()
        stats = describe_dataset(layout, run.plan)
    return Addition(run.features, stats.rows["kept"], worked_on, run.failures())


def _prepare(
    layout: Layout, names: Sequence[str], overrides: Iterable[str], store: ModelStore, progress: bool
) -> "_Run":
    layout.require()
    before = Plan.model_validate_json(layout.store.get(layout.plan))
    ledger = Ledger(layout).read()
    shards = [name for name in ledger.files if folder_of(name) == layout.shards]
    if not shards:
        raise AdditionError(f"{layout.url} has no kept rows to add features to")
    shard = schema_of(layout.store, shards[0])
    made = build_feature_dag(layout.url, before, shard, names, overrides, store)
    nodes = [node for node in made.dag.nodes if node.name in names]
    plan = extended(relocated(before, layout), nodes, made.dag)
    features = tuple(node.column for node in nodes)
    waiting = waiting_units(ledger.open(), before)
    return _Run(made.resources, made.dag, features, shard, before, plan, ledger, waiting, progress)


@dataclass(frozen=True)
class _Run:
    resources: ResourceConfig
    dag: Dag  # the added stages, and the stages that write their inputs
    features: tuple[str, ...]  # columns of the added stages
    shard: pa.Schema
    before: Plan
    plan: Plan
    ledger: Ledger
    waiting: Set[int]  # units under an older plan that cannot be updated because their files are missing
    progress: bool
    _failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    _messages: dict[tuple[str, str], str] = field(default_factory=dict)
    _footers: dict[str, Mapping[bytes, bytes]] = field(default_factory=dict)  # by the files' digests

    def bring_up_to_date(self) -> int:
        """Compute the missing features, then update the records and the plan.

        Returns:
            The number of rows that were processed.
        """
        self._check_commits()
        todo = self._todo()
        if todo.num_rows:  # without work, do not start Ray
            layout, settings = self.ledger.layout, {"features": self.features, "resources": self.resources.model_dump()}
            with (
                recorded(layout, "add features", self.plan.id, settings) as record,
                others_logged(layout),
                cluster(self.resources),
            ):
                check_placeable(self._operators(self.features), self.resources)
                counts = RunCounts(observers=(record, Metrics(layout.url)))
                in_rounds("features", todo, self._todo, self._work, counts, progress=self.progress)
        for commit in list(self.ledger.commits.values()):
            if commit.plan != self.plan.id and commit.unit not in self.waiting:
                self.ledger.amend(commit.model_copy(update={"plan": self.plan.id}), {})
        remember_plan(self.ledger.layout, self.plan)
        return todo.num_rows

    def failures(self) -> list[Failure]:
        """Failures by stage and reason, the most frequent first."""
        return [Failure(*key, rows, self._messages[key]) for key, rows in self._failed.most_common()]

    def _check_commits(self) -> None:
        """Check that every unit was made with the dataset's plan, and will have all features of the new plan.

        Raises:
            AdditionError: it was not, or would not.
        """
        commits = self.ledger.commits.values()
        plans = (self.before.id, self.plan.id, NO_PLAN)
        other_plan = sum(commit.plan not in plans and commit.unit not in self.waiting for commit in commits)
        if other_plan:
            raise AdditionError(
                f"{other_plan} units were made with another plan because a run was interrupted. Finish that run, or "
                "run the command that made the dataset, which recomputes these units"
            )
        if lacking := {name for commit in commits for name in self._lacking(commit)} - {*self.features}:
            names = ",".join([*self.features, *sorted(lacking)])
            raise AdditionError(f"some units also lack {', '.join(sorted(lacking))}; use --add {names}")

    def _lacking(self, commit: Commit) -> tuple[str, ...]:
        """Features of the new plan that a unit lacks, or has from other stages or for another shard."""
        if self.ledger.layout.shard_file(commit.unit) not in commit.files:
            return ()
        planned = {name: stage.fingerprint for name, stage in self.plan.columns.items() if name in FEATURES}
        return tuple(name for name, made_by in planned.items() if not self._has(commit, name, made_by))

    def _has(self, commit: Commit, feature: str, fingerprint: str) -> bool:
        layout = self.ledger.layout
        name = layout.feature_file(feature, commit.unit)
        if name not in commit.files or not layout.store.exists(name):
            return False
        footer = self._footer(name, commit.files[name])
        made_by = json.loads(footer.get(FOOTER_FINGERPRINTS, b"{}")).get(feature)
        shard = commit.files[layout.shard_file(commit.unit)]
        return made_by == fingerprint and footer.get(FOOTER_SHARD_DIGEST) == shard.encode()

    def _footer(self, name: str, digest: str) -> Mapping[bytes, bytes]:
        """The keys in a feature file's footer; a file of the same digest has the same ones, and is asked often."""
        if digest not in self._footers:
            self._footers[digest] = schema_of(self.ledger.layout.store, name).metadata or {}
        return self._footers[digest]

    def _todo(self) -> pa.Table:
        """The kept rows of every unit that lacks a feature, as input of the first operator."""
        units = [commit for commit in self.ledger.commits.values() if self._lacking(commit)]
        layout = self.ledger.layout
        tables = (
            _as_unit(read_parquet(layout.store, layout.shard_file(unit), self._read_columns), unit)
            for unit in (commit.unit for commit in units)
        )
        return pa.concat_tables([self._input_schema(()).empty_table(), *tables])

    @property
    def _read_columns(self) -> list[str]:
        """Columns to read from the shard: identity, audio properties, and what the stages read."""
        read = {c for node in self.dag.nodes for c in (*node.stage_type.reads, *node.stage_type.reads_if_present)}
        return [name for name in self.shard.names if name in {*_IDENTITY, "audio", *read}]

    def _input_schema(self, features: Iterable[str]) -> pa.Schema:
        return pa.schema(
            [
                *(self.shard.field(name) for name in self._read_columns),
                *(pa.field(name, self.dag.column_types[name]) for name in features),
                pa.field("verdict", columns.VERDICT),
                pa.field("timing", columns.TIMING),
                *UNIT,
            ]
        )

    def _work(self, rows: pa.Table, counts: RunCounts) -> None:
        """One pass for each set of units that lack the same features; usually that is a single pass."""
        units_by_features: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for unit in pc.unique(rows["unit"]).to_pylist():
            units_by_features[self._lacking(self.ledger.commits[unit])].append(unit)
        for features, units in units_by_features.items():
            self._pass(features, rows.filter(pc.is_in(rows["unit"], pa.array(units, pa.int64()))), units, counts)

    def _pass(self, features: tuple[str, ...], rows: pa.Table, units: Iterable[int], counts: RunCounts) -> None:
        fingerprints = {name: self.dag.fingerprints[name] for name in features}
        commits = {unit: self.ledger.commits[unit] for unit in units}
        shards = {unit: commit.files[self.ledger.layout.shard_file(unit)] for unit, commit in commits.items()}
        sink = FeatureSink(FeatureSpec(self.ledger.layout, self.plan.id, fingerprints, shards=shards))
        for written in run_pass(rows, self._operators(features), sink, self.resources, counts):
            self._commit(commits[written.unit], written)

    def _commit(self, old: Commit, written: WrittenFeatures) -> None:
        added = {node.name for node in self.dag.nodes if node.column in self.features}
        timings = {name: time for name, time in written.timings.items() if name in added}
        new = {
            "plan": old.plan if old.unit in self.waiting else self.plan.id,
            "files": {**old.files, **written.files},
            "timings": {**old.timings, **timings},
        }
        self.ledger.amend(old.model_copy(update=new), written.temporary)
        for stage, reason, message in written.failures:
            self._failed[stage, reason] += 1
            self._messages.setdefault((stage, reason), message)

    def _operators(self, features: Collection[str]) -> list[OperatorSpec]:
        dag = Dag(_needed(self.dag.nodes, features), gates=())
        reads_audio = any("uri" in node.stage_type.reads for node in dag.nodes)
        return [
            OperatorSpec(
                nodes=nodes,
                gates=(),
                carried=pa.schema([*self._input_schema(features), *dag.working_between(i)]),
                prepare=require_same_bytes if reads_audio and i == 0 else None,
                is_last=i == len(dag.operators) - 1,
            )
            for i, nodes in enumerate(dag.operators)
        ]


def _needed(nodes: Sequence[Node], features: Collection[str]) -> tuple[Node, ...]:
    """The nodes that compute these features, and the nodes that write their inputs, in order."""
    wanted = set(features)
    needed: list[Node] = []
    for node in reversed(nodes):
        stage = node.stage_type
        if wanted & {stage.column, *stage.working}:
            needed.insert(0, node)
            wanted |= {*stage.reads, *stage.reads_if_present}
    return tuple(needed)


def _as_unit(rows: pa.Table, unit: int) -> pa.Table:
    count = rows.num_rows
    verdict = {"status": "kept", "stage": None, "reason": None, "message": None, "attempts": 0}
    values = {
        "verdict": pa.array([verdict] * count, columns.VERDICT),
        "timing": pa.nulls(count, columns.TIMING),
        "unit": pa.array([unit] * count, pa.int64()),
        "place": pa.array(range(count), pa.int64()),
        "unit_rows": pa.array([count] * count, pa.int64()),
        "supersedes": pa.nulls(count, pa.int64()),
    }
    return pa.table({**{name: rows[name] for name in rows.column_names}, **values})
