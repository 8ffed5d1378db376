"""`songmill curate`: manifest -> scan pass -> prefilter over all rows -> models on kept rows -> committed shards."""

import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.console.library_output import others_logged
from pipeline.curation.changes import Changes
from pipeline.curation.input_changes import InputChanges
from pipeline.curation.missing import Waiting, drop_missing_rows, missing_rows
from pipeline.curation.moves import settle_moves
from pipeline.curation.prefilter import judge_scan, keepers
from pipeline.curation.reuse import StoredColumns
from pipeline.curation.scan import rows_to_scan, run_scan
from pipeline.curation.sink import ShardSink, SinkSpec
from pipeline.curation.work_units import todo_schema, units_to_do
from pipeline.dataset.ledger import Ledger, unit_files
from pipeline.dataset.marks import Mark, read_marks
from pipeline.dataset.runs import recorded
from pipeline.dataset.saved_config import planned_settings, remember_config, remember_plan
from pipeline.dataset.scan_table import drop_from_scan, failed_in_scan, read_scan
from pipeline.dataset.sketch_reader import SketchReader
from pipeline.dataset.stats import Stats
from pipeline.dataset.tombstones import forgotten_tracks, read_tombstones, without_forgotten
from pipeline.dataset.writing import describe_dataset, exclusive_lock
from pipeline.errors import DataProblem
from pipeline.execution.cluster import check_placeable, cluster, run_pass
from pipeline.execution.metrics import Metrics
from pipeline.execution.operator import OperatorSpec
from pipeline.execution.rounds import in_rounds
from pipeline.execution.run_counts import RunCounts
from pipeline.ingest.manifest import fill_defaults, list_songs
from pipeline.models.store import ModelStore
from pipeline.planning.dag import Dag
from pipeline.planning.plan import Plan, make_dag, make_plan
from schemas.config import CurateConfig, StageConfig
from schemas.dataset import FEATURES, Layout
from schemas.storage.location import absolute

_log = logging.getLogger("songmill.curate")


class CurateError(DataProblem):
    """The run is refused before it starts; the message names the fix."""


@dataclass(frozen=True)
class Outcome:
    """Result of a finished run.

    Attributes:
        stats: statistics of the whole dataset.
        worked_on: number of rows that this run scanned, ran a stage on or added.
        updated: number of other rows whose verdict, identity columns or mark it changed.
        input: how the input differs from what the dataset had seen.
    """

    stats: Stats
    worked_on: int
    updated: int
    input: InputChanges

    @property
    def unchanged(self) -> int:
        """Number of rows that the run did not change."""
        return self.stats.rows["total"] - self.worked_on - self.updated


def curate(
    config: CurateConfig,
    store: ModelStore,
    *,
    update: bool = False,
    progress: bool = True,
    retry: Set[str] | None = None,
    drop_missing: bool = False,
) -> Outcome:
    """Bring the dataset up to date with the input and the plan; committed work is not repeated.

    Args:
        config: the run's configuration.
        store: the model store.
        update: accept a plan other than the dataset's and recompute the columns whose fingerprint changed.
        progress: show live progress on stderr.
        retry: process only the rows with these ids, from the stage that failed.
        drop_missing: remove rows whose files are missing from the dataset; by default they stay unchanged.

    Raises:
        DagError: the DAG is invalid; nothing was started.
        ManifestError: the input cannot be listed.
        CurateError: the plan differs from the dataset's, without `update`.
        DatasetLocked: another process is writing the dataset.
        PassFailed: a stage cannot start, or rows are unfinished after all rounds.
        DataProblem: `drop_missing` would leave no row.
        NoNode: no node of the cluster has room for an operator.
    """
    layout = Layout.at(absolute(config.output), config.storage)
    config = _with_features(config, layout)
    dag = make_dag(config, store)
    plan = make_plan(config, dag)
    listing = list_songs(config.input.path)
    _log.info("%s: plan %s, %d songs in %s", layout.url, plan.id, listing.songs.num_rows, config.input.path)
    for node in dag.nodes:
        _log.debug("stage %s, fingerprint %s, %s", node.name, node.fingerprint, node.params)
    with exclusive_lock(layout):
        _check_plan(layout, plan, update)
        ledger = Ledger(layout).open()
        tombstones = read_tombstones(layout)
        manifest = without_forgotten(listing.songs, tombstones)
        if not layout.store.exists(layout.plan):  # so that a first run killed before its first commit can be resumed
            remember_config(layout, config, dag)
        moves = settle_moves(layout, ledger, manifest, dag, progress=progress)
        missing = missing_rows(layout, ledger, manifest)
        if drop_missing:
            drop_missing_rows(layout, ledger, missing.keys())
        dropped, missing = (missing, {}) if drop_missing else ({}, missing)
        if retry is not None:
            _ready_for_retry(layout, dag, manifest, retry)
        new = manifest.filter(
            pc.and_(pc.invert(_in(manifest["row_id"], ledger.rows.keys())), pc.is_valid(manifest["size"]))
        )
        marks, forgotten = read_marks(layout), forgotten_tracks(tombstones)
        changes = Changes()
        run = _Run(
            *(config, manifest, dag, plan, layout, ledger, progress, marks, forgotten, retry), changes, missing.keys()
        )
        waiting = run.bring_up_to_date()
        unseen = manifest.filter(pc.is_null(manifest["size"]))["uri"].to_pylist()
        changed = InputChanges(
            new=new["uri"].to_pylist(),
            moved=[(move.uri, move.new_uri) for move in moves],
            missing=sorted({*missing.values(), *unseen}),
            dropped=sorted(dropped.values()),
            waiting=waiting,
            left_out=listing.left_out,
        )
        return Outcome(describe_dataset(layout, plan), changes.worked_on, changes.updated, changed)


def _ready_for_retry(layout: Layout, dag: Dag, manifest: pa.Table, row_ids: Set[str]) -> None:
    """Remove rows that the scan could not read from the scan table if the input still lists them."""
    unread = pc.and_(_in(manifest["row_id"], row_ids), _in(manifest["row_id"], failed_in_scan(layout, dag)))
    drop_from_scan(layout, {*manifest.filter(unread)["row_id"].to_pylist()})


def _in(column: pa.ChunkedArray, values: Set[str]) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array(values, pa.string()))


def _with_features(config: CurateConfig, layout: Layout) -> CurateConfig:
    """The configuration plus the features that were added to the dataset since, so that new songs get them too."""
    if not layout.store.exists(layout.plan):
        return config
    plan = Plan.model_validate_json(layout.store.get(layout.plan))
    added = [stage for column, stage in plan.columns.items() if column in FEATURES and stage.name not in config.stages]
    settings = planned_settings(layout.url, plan, added)
    stages = {name: StageConfig.model_validate(of_stage) for name, of_stage in settings.items()}
    return config.model_copy(update={"stages": {**config.stages, **stages}})


def _check_plan(layout: Layout, plan: Plan, update: bool) -> None:
    """Refuse a plan other than the dataset's unless `update` is given.

    Raises:
        CurateError: the plans differ, or the dataset has shards but no plan.
    """
    if not layout.store.exists(layout.plan) and any(unit_files(layout)):
        raise CurateError(
            f"{layout.url} has shards but no _songmill/plan.json, so the run would delete them as uncommitted; "
            "choose another --out"
        )
    if layout.store.exists(layout.plan):
        before = Plan.model_validate_json(layout.store.get(layout.plan))
        if before.id != plan.id and not update:
            changes = "\n".join(f"  {line}" for line in before.differences(plan))
            raise CurateError(
                f"{layout.url} was made with another plan:\n{changes}\n"
                "Use the same settings, another --out, or --update to recompute the changed columns."
            )


@dataclass(frozen=True)
class _Run:
    config: CurateConfig
    manifest: pa.Table
    dag: Dag
    plan: Plan
    layout: Layout
    ledger: Ledger
    progress: bool
    marks: Mapping[str, Mark]
    forgotten: Set[str]
    retry: Set[str] | None
    changes: Changes
    missing: Set[str]

    def bring_up_to_date(self) -> int:
        """Run both passes until no work is left.

        Returns:
            The number of rows that cannot be brought up to date because their files are missing.
        """
        unscanned = self._unscanned()
        todo, waiting = (None, 0) if unscanned.num_rows else self._todo()
        if todo is not None and not todo.num_rows:
            return waiting  # no work: do not start Ray
        self.changes.scanned(unscanned)
        _log.info("%d rows to scan", unscanned.num_rows)
        settings = self.config.model_dump(mode="json")
        with (
            recorded(self.layout, "curate", self.plan.id, settings) as record,
            others_logged(self.layout),
            cluster(self.config.resources),
        ):
            check_placeable(self._operators(), self.config.resources)
            counts = RunCounts(observers=(record, Metrics(self.layout.url)))
            in_rounds("scan", unscanned, self._unscanned, self._scan, counts, progress=self.progress)
            todo, waiting = self._todo() if todo is None else (todo, waiting)
            _log.info("%d rows to work on, in %d units", todo.num_rows, pc.count_distinct(todo["unit"]).as_py())
            left = partial(self._uncommitted, todo)
            in_rounds("curate", todo, left, self._curate, counts, progress=self.progress)
        return waiting

    def _unscanned(self) -> pa.Table:
        scanned = read_scan(self.layout, self.dag, ("row_id", "size", "stamp"))
        committed = self.ledger.rows.keys()
        rows = rows_to_scan(self.manifest, scanned, committed, self.layout, self.dag, self.missing)
        return rows if self.retry is None else rows.filter(_in(rows["row_id"], self.retry))

    def _todo(self) -> tuple[pa.Table, int]:
        scan = read_scan(self.layout, self.dag)
        wanted = pa.array({*self.manifest["row_id"].to_pylist(), *self.ledger.rows}, pa.string())
        scan = scan.filter(pc.is_in(scan["row_id"], wanted))
        scan = fill_defaults(scan, license=self.config.input.license, source=self.config.input.source)
        sketches = SketchReader(self.layout)
        judged = judge_scan(scan, self.dag, self.plan, self.ledger, sketches, self.marks, self.forgotten, self.missing)
        waiting = Waiting(
            self.layout, self.dag, self.plan, self.ledger, self.marks, self.missing, self.retry
        ).split_off(judged)
        resources = self.config.resources
        todo = units_to_do(judged, self.dag, self.plan, self.ledger, resources, self.marks, self.retry, waiting)
        return todo, len(waiting)

    def _uncommitted(self, todo: pa.Table) -> pa.Table:
        return todo.filter(pc.invert(pc.is_in(todo["unit"], pa.array(list(self.ledger.commits), pa.int64()))))

    def _scan(self, rows: pa.Table, counts: RunCounts) -> None:
        run_scan(rows, self.dag, self.layout, self.config.resources, counts, self.missing)

    def _curate(self, rows: pa.Table, counts: RunCounts) -> None:
        marks = {row_id: mark.mark for row_id, mark in self.marks.items()}
        sink = ShardSink(SinkSpec(self.layout, self.plan.id, self.dag.fingerprints, marks))
        complete, resources = SketchReader(self.layout).complete, self.config.resources
        for written in run_pass(rows, self._operators(), sink, resources, counts, complete):
            remember_plan(self.layout, self.plan)
            remember_config(self.layout, self.config, self.dag)
            self.changes.committed(written.commit, self.ledger.replaced_by(written.commit), written.measured)
            self.ledger.add(written.commit, written.temporary)

    def _operators(self) -> list[OperatorSpec]:
        groups = self.dag.operators
        files = {commit.unit: list(commit.files) for commit in self.ledger.commits.values()}
        stored = StoredColumns(self.layout, files, self.dag)
        return [
            OperatorSpec(
                nodes=nodes,
                gates=self.dag.gates,
                carried=pa.schema([*todo_schema(self.dag), *self.dag.working_between(i)]),
                prepare=stored if i == 0 else None,
                is_last=i == len(groups) - 1,
                spared=keepers(self.marks),
                untouched=frozenset(self.missing),
            )
            for i, nodes in enumerate(groups)
        ]
