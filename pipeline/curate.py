"""`songmill curate`: manifest -> scan -> verdicts on the whole table -> models on what is left -> committed shards."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from filelock import FileLock, Timeout
from ray.actor import ActorHandle

from pipeline.card import write_card
from pipeline.cluster import check_placeable, cluster, run_pass
from pipeline.dag import Dag
from pipeline.errors import DataProblem
from pipeline.judging import judge_scan, keepers
from pipeline.ledger import Commit, Ledger, unit_files, write_durably
from pipeline.manifest import fill_defaults, read_manifest
from pipeline.marks import Mark, read_marks
from pipeline.missing import Waiting, drop_missing_rows, missing_rows
from pipeline.models.store import ModelStore
from pipeline.moves import finish_moves, settle_moves
from pipeline.operator import OperatorSpec
from pipeline.plan import Plan, make_dag, make_plan
from pipeline.progress import Tally, shown
from pipeline.remembered import remember_config
from pipeline.scan import drop_from_scan, failed_in_scan, read_scan, rows_to_scan, run_scan
from pipeline.sink import ShardSink, SinkSpec
from pipeline.sketch_reader import SketchReader
from pipeline.snapshot import renew_stats
from pipeline.stats import Stats
from pipeline.stored import StoredColumns
from pipeline.todo import todo_schema, units_to_do
from pipeline.tombstones import forgotten_tracks, read_tombstones, without_forgotten
from schemas.config import CurateConfig, StageConfig
from schemas.dataset import FEATURES, Layout

_ROUNDS = 3  # a worker that dies may lose rows which are not committed yet; they run again this often


_NAMED = 10  # files of a kind


class CurateError(DataProblem):
    """A run that cannot start or did not finish; the message says what to do."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves.

    Attributes:
        stats: the dataset's figures.
        worked_on: rows this run had to do.
        new: uris of the input that the dataset did not know.
        moved: old and new uri of each song that was found in another place, and whose row followed it.
        missing: uris of rows whose files are away, and of the input's that nobody has ever seen.
        dropped: uris of rows that left the dataset because their files are away.
        waiting: rows that could not be brought up to date, for their files are away.
    """

    stats: Stats
    worked_on: int
    new: Sequence[str] = ()
    moved: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()
    dropped: Sequence[str] = ()
    waiting: int = 0

    def input_facts(self) -> dict[str, Any]:
        """How many files of each kind, and which, up to ten; for JSON."""
        kinds = {"new": self.new, "moved": self.moved, "missing": self.missing, "dropped": self.dropped}
        counts = {kind: len(files) for kind, files in kinds.items()}
        return {**counts, "waiting": self.waiting, "files": {kind: [*files[:_NAMED]] for kind, files in kinds.items()}}

    def input_lines(self) -> list[str]:
        """The same for a person; no line where nothing has changed, and no names where all is new."""
        kinds: dict[str, Sequence[str]] = {
            "moved": [f"{old} -> {new}" for old, new in self.moved],
            "missing": self.missing,
            "dropped": self.dropped,
        }
        changed = any(kinds.values())
        counts = [f"{len(files)} {kind}" for kind, files in {"new": self.new, **kinds}.items() if files]
        lines = [f"input: {', '.join(counts)}"] if counts else []
        for kind, files in ({"new": self.new, **kinds} if changed else {}).items():
            lines += [f"  {kind}: {_printable(name)}" for name in files[:_NAMED]]
            lines += [f"  {kind}: and {len(files) - _NAMED} more"] if len(files) > _NAMED else []
        if self.missing:
            lines.append("  complete rows whose files are missing stay as they are; --drop-missing lets them go")
        if self.waiting:
            lines.append(f"  {self.waiting} rows could not be brought up to date, for their files are missing")
        return lines


def _printable(name: str) -> str:
    """A file's name as a terminal may get it."""
    return name if name.isprintable() else ascii(name)


def curate(
    config: CurateConfig,
    store: ModelStore,
    *,
    update: bool = False,
    progress: bool = True,
    retry: Set[str] | None = None,
    drop_missing: bool = False,
) -> Outcome:
    """Bring the dataset in line with the input and the plan; do what is not committed yet and nothing twice.

    Args:
        config: the run's configuration.
        store: where the models lie.
        update: allow a plan other than the dataset's; columns whose fingerprint changed are made anew.
        progress: show live progress on stderr.
        retry: row ids to work on again, from the stage that failed, and nothing else.
        drop_missing: let rows whose files are away leave the dataset; else they stay as they are.

    Raises:
        DagError: the DAG does not fit; nothing was started.
        ManifestError: the input cannot be listed.
        CurateError: another plan without `update`, another process at work, or rows left after all rounds.
        DataProblem: `drop_missing` would leave no row.
        ClusterError: the cluster cannot place the operators.
    """
    layout = Layout(config.output.resolve())
    config = _with_features(config, layout)
    dag = make_dag(config, store)
    plan = make_plan(config, dag)
    manifest = read_manifest(config.input.path)
    with alone(layout):
        _check_plan(layout, plan, update)
        ledger = Ledger(layout).open()
        tombstones = read_tombstones(layout)
        manifest = without_forgotten(manifest, tombstones)
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
        run = _Run(config, manifest, dag, plan, layout, ledger, progress, marks, forgotten, retry, missing.keys())
        worked_on, waiting = run.bring_up_to_date()
        unseen = manifest.filter(pc.is_null(manifest["size"]))["uri"].to_pylist()
        return Outcome(
            describe_dataset(layout, plan),
            worked_on,
            new["uri"].to_pylist(),
            [(move.uri, move.new_uri) for move in moves],
            sorted({*missing.values(), *unseen}),
            sorted(dropped.values()),
            waiting,
        )


def describe_dataset(layout: Layout, plan: Plan) -> Stats:
    """Write the figures and the card of a dataset anew."""
    stats = renew_stats(layout)
    write_card(layout, plan, stats)
    return stats


def _ready_for_retry(layout: Layout, dag: Dag, manifest: pa.Table, row_ids: Set[str]) -> None:
    """Let the scan forget what it could not read, as far as the input still has it."""
    unread = pc.and_(_in(manifest["row_id"], row_ids), _in(manifest["row_id"], failed_in_scan(layout, dag)))
    drop_from_scan(layout, {*manifest.filter(unread)["row_id"].to_pylist()})


def _in(column: pa.ChunkedArray, values: Set[str]) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array(values, pa.string()))


def _with_features(config: CurateConfig, layout: Layout) -> CurateConfig:
    """The configuration and the features that were added to the dataset since, so that new songs get them too."""
    if not layout.plan.exists():
        return config
    columns = Plan.model_validate_json(layout.plan.read_bytes()).columns
    added = {
        stage.name: StageConfig(engine=stage.engine, **stage.params)
        for column, stage in columns.items()
        if column in FEATURES and stage.name not in config.stages
    }
    return config.model_copy(update={"stages": {**config.stages, **added}})


@contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """One process at a time writes a dataset, and finishes first what a killed one had begun to rename.

    The lock goes with the process, however that ends.

    Raises:
        CurateError: another one does.
    """
    layout.state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(layout.state / "lock", timeout=0):
            finish_moves(layout)
            yield
    except Timeout:
        raise CurateError(f"{layout.root}: another songmill process is writing this dataset; wait for it") from None


def _check_plan(layout: Layout, plan: Plan, update: bool) -> None:
    """Refuse a plan other than the dataset's unless an update is asked for."""
    if not layout.plan.exists() and any(unit_files(layout)):
        raise CurateError(
            f"{layout.root} holds shards that no _songmill/plan.json accounts for and that would be swept; "
            "choose another --out"
        )
    if layout.plan.exists():
        before = Plan.model_validate_json(layout.plan.read_bytes())
        if before.id != plan.id and not update:
            changes = "\n".join(f"  {line}" for line in before.differences(plan))
            raise CurateError(
                f"{layout.root} was made by another plan:\n{changes}\n"
                "Give the same settings, another --out, or --update to make the changed columns anew."
            )


def remember_plan(layout: Layout, plan: Plan) -> None:
    """Write the plan down, before its first commit: a run that cannot start leaves a dataset as it was."""
    content = plan.model_dump_json(indent=2).encode()
    if not layout.plan.exists() or layout.plan.read_bytes() != content:
        write_durably(layout.plan, content)


def in_rounds(
    title: str,
    rows: pa.Table,
    still_left: Callable[[], pa.Table],
    work: Callable[[pa.Table, ActorHandle], None],
    tally: ActorHandle,
    *,
    progress: bool,
) -> None:
    """Work on rows, and again on those that a dying worker took with it. The tally counts each round anew.

    Raises:
        CurateError: a stage cannot start, the cluster fails every time, or rows are left after all rounds.
    """
    for attempt in range(_ROUNDS):
        if not rows.num_rows:
            return
        with shown(title, rows.num_rows, tally, enabled=progress):
            try:
                ray.get(tally.renew.remote())
                work(rows, tally)
            except ray.exceptions.RayError as error:
                if broken := _broken(tally):
                    raise CurateError(broken) from error
                if attempt == _ROUNDS - 1:
                    raise CurateError(f"the cluster failed {_ROUNDS} times, at last with: {error}") from error
            except OSError as error:  # the disk is full, say; shards are written by this process
                raise CurateError(f"{error}; what is committed stands, the same command goes on from there") from error
        rows = still_left()
    if rows.num_rows:
        raise CurateError(f"{rows.num_rows} rows are not done after {_ROUNDS} rounds; run the same command again")


def _broken(tally: ActorHandle) -> str | None:
    """Why a stage could not start, if that is what ended the pass."""
    try:
        return ray.get(tally.broken.remote(), timeout=10)  # type: ignore[return-value]
    except ray.exceptions.RayError:
        return None  # the cluster itself is gone


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
    missing: Set[str]

    def bring_up_to_date(self) -> tuple[int, int]:
        """Run both passes until nothing is left to do; how many rows were worked on, and how many wait for a file."""
        unscanned = self._unscanned()
        todo, waiting = (None, 0) if unscanned.num_rows else self._todo()
        if todo is not None and not todo.num_rows:
            return 0, waiting  # nothing to do needs no cluster
        with cluster(self.config.resources):
            check_placeable(self._operators())
            tally = Tally.remote()  # type: ignore[attr-defined]
            in_rounds("scan", unscanned, self._unscanned, self._scan, tally, progress=self.progress)
            todo, waiting = self._todo() if todo is None else (todo, waiting)
            left = partial(self._uncommitted, todo)
            in_rounds("curate", todo, left, self._curate, tally, progress=self.progress)
        return todo.num_rows, waiting

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
        ).set_apart(judged)
        resources = self.config.resources
        todo = units_to_do(judged, self.dag, self.plan, self.ledger, resources, self.marks, self.retry, waiting)
        return todo, len(waiting)

    def _uncommitted(self, todo: pa.Table) -> pa.Table:
        return todo.filter(pc.invert(pc.is_in(todo["unit"], pa.array(list(self.ledger.commits), pa.int64()))))

    def _scan(self, rows: pa.Table, tally: ActorHandle) -> None:
        run_scan(rows, self.dag, self.layout, self.config.resources, tally, self.missing)

    def _curate(self, rows: pa.Table, tally: ActorHandle) -> None:
        marks = {row_id: mark.mark for row_id, mark in self.marks.items()}
        sink = SinkSpec(self.layout.root, self.plan.id, self.dag.fingerprints, marks)
        complete, resources = SketchReader(self.layout).complete, self.config.resources
        for result in run_pass(rows, self._operators(), ShardSink, sink, resources, tally, complete):
            remember_plan(self.layout, self.plan)
            remember_config(self.layout, self.config, self.dag)
            temporary = {final: Path(path) for final, path in result["temporary"].items()}
            self.ledger.add(Commit.model_validate(result["commit"]), temporary)

    def _operators(self) -> list[OperatorSpec]:
        groups = self.dag.operators
        files = {commit.unit: list(commit.files) for commit in self.ledger.commits.values()}
        stored = StoredColumns(self.layout.root, files, self.dag)
        return [
            OperatorSpec(
                nodes=nodes,
                gates=self.dag.gates,
                carried=pa.schema([*todo_schema(self.dag), *self.dag.working_between(i)]),
                prepare=stored if i == 0 else None,
                is_last=i == len(groups) - 1,
                max_attempts=self.config.resources.max_attempts,
                spared=keepers(self.marks),
                untouched=frozenset(self.missing),
            )
            for i, nodes in enumerate(groups)
        ]
