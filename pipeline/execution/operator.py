"""Run several stages over a batch in one process.

One exception costs one row: it becomes the row's verdict, and later stages skip the row. Columns that a row brings
along (stored by an earlier run) are not measured again, and audio is only decoded when some stage is due.
"""

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from pipeline.errors import DataProblem
from pipeline.execution.flight_recorder import FlightRecorder
from pipeline.execution.worker_deaths import Fate
from pipeline.planning.dag import Node
from pipeline.planning.gates import Gate
from schemas import columns
from stages.base import Stage, TrackError

_MESSAGE_LIMIT = 2000
IDENTITY = "identity"  # what `prepare` counts as: it reads the song's file, or what is stored of it


class StageCannotStart(DataProblem):
    """A stage's models or libraries do not load, which repeating will not mend."""


@dataclass(frozen=True)
class OperatorSpec:
    """What one operator does.

    Attributes:
        nodes: its stages, in order.
        gates: thresholds, applied right after the column they judge.
        carried: columns it lets through or creates, persisted ones and those working ones that a later operator reads.
        prepare: completes a block before the first stage: the scan's identity columns, the curation's stored ones.
        is_last: whether finished rows count as done.
        spared: rows that no threshold turns away.
        untouched: rows on which no stage runs: they have all they need, and their files are away.
    """

    nodes: tuple[Node, ...]
    gates: tuple[Gate, ...]
    carried: pa.Schema
    prepare: Callable[[pa.Table], pa.Table] | None
    is_last: bool
    spared: frozenset[str] = frozenset()
    untouched: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Report:
    """What became of a block; small, and so with the driver sooner than the block.

    Attributes:
        passed: stage -> rows that came through it, measured or failed with an error.
        status: verdict -> rows, behind the last operator only.
        audio_s: seconds of audio of these.
    """

    passed: Mapping[str, int]
    status: Mapping[str, int]
    audio_s: float


class Operator:
    """A replica: its stages, each with its models loaded from the first row on that needs them.

    Raises:
        StageCannotStart: one of them is not to be had here.
    """

    def __init__(self, spec: OperatorSpec, recorder: FlightRecorder) -> None:
        self.spec = spec
        self.recorder = recorder
        self.stages = [_started(node, node.build) for node in spec.nodes]
        self._asleep = {node.name: node for node in spec.nodes}
        for stage in self.stages:
            later = {c for s in self.stages for c in (*s.reads, *s.reads_if_present)} | set(spec.carried.names)
            stage.wanted = frozenset(stage.working) & later
        self.batch_rows = min(stage.resources.batch_rows for stage in self.stages)

    def __call__(self, block: pa.Table, fates: Mapping[str, Fate]) -> tuple[Report, pa.Table]:
        """Measure and judge every row of a block; same rows, same order, all declared columns.

        Args:
            block: the rows.
            fates: those of its rows that have killed workers.
        """
        parts = (block.slice(start, self.batch_rows) for start in range(0, block.num_rows, self.batch_rows))
        rows = pa.concat_tables(self._batch(part, fates) for part in parts)
        return _report(rows if self.spec.is_last else rows.slice(0, 0), dict(self.recorder.passed)), rows

    def _wake(self, stage: Stage) -> None:
        """Load the stage's models: rows that are rejected, or have its column already, never need them."""
        if node := self._asleep.pop(stage.name, None):
            _started(node, lambda: stage.setup(node.weights))
            _limit_threads()

    def _batch(self, rows: pa.Table, fates: Mapping[str, Fate]) -> pa.Table:
        rows = _set_aside(_begun(rows, fates), IDENTITY, fates)
        if self.spec.prepare:
            self.recorder.note(IDENTITY, [*_ids(rows)])
            rows = self.spec.prepare(rows)
            self.recorder.passed[IDENTITY] += rows.num_rows
        due = self._due(rows)
        for stage in self.stages:
            rows = _set_aside(rows, stage.name, fates)
            if stage.name in due:
                rows = self._measure(stage, rows)
            rows = self._judge(stage.column, rows)
        return _conform(rows, self.spec.carried)

    def _due(self, rows: pa.Table) -> set[str]:
        """Stages to run: those whose column some kept row lacks, and the makers of working columns they read."""
        kept = self._live(rows)
        due: set[str] = set()
        needed: set[str] = set(self.spec.carried.names)
        for stage in reversed(self.stages):
            absent = stage.column not in rows.column_names or any(not rows[stage.column][i].is_valid for i in kept)
            if absent or needed & set(stage.working):
                due.add(stage.name)
                needed |= {*stage.reads, *stage.reads_if_present}
        return due

    def _live(self, rows: pa.Table) -> list[int]:
        """Rows that stages run on."""
        facts = enumerate(zip(_ids(rows), _statuses(rows), strict=True))
        return [i for i, (row_id, status) in facts if status == "kept" and row_id not in self.spec.untouched]

    def _measure(self, stage: Stage, rows: pa.Table) -> pa.Table:
        live = self._live(rows)
        if not live:
            return rows
        at_work = rows if len(live) == rows.num_rows else rows.take(live)
        self.recorder.note(stage.name, [*_ids(at_work)])
        self._wake(stage)
        started = time.perf_counter()
        measured, errors = _run(stage, at_work)
        seconds = (time.perf_counter() - started) / len(live)
        self.recorder.passed[stage.name] += len(live)
        measured_at = {i: k for k, i in enumerate(live) if k not in errors}
        for name, values in measured.items():
            rows = _with_column(rows, name, _placed(rows, name, values, measured_at))
        rows = _fail(rows, stage, {live[i]: error for i, error in errors.items()})
        return _add_timing(rows, stage.name, live, seconds)

    def _judge(self, column: str, rows: pa.Table) -> pa.Table:
        gates = [gate for gate in self.spec.gates if gate.column == column]
        if not gates or column not in rows.column_names:
            return rows
        verdicts = rows["verdict"].to_pylist()
        for row_id, verdict, value in zip(_ids(rows), verdicts, rows[column].to_pylist(), strict=True):
            if row_id not in self.spec.spared:
                judge(verdict, value, gates)
        return _with_column(rows, "verdict", pa.array(verdicts, columns.VERDICT))


def _started(node: Node, start: Callable[[], Any]) -> Any:
    try:
        return start()
    except (Exception, SystemExit) as error:
        raise StageCannotStart(f"stage {node.name!r} cannot start: {_describe(error)}") from error


def _begun(rows: pa.Table, fates: Mapping[str, Fate]) -> pa.Table:
    """Count the attempt."""
    verdicts = rows["verdict"].to_pylist()
    for verdict, row_id in zip(verdicts, _ids(rows), strict=True):
        if verdict["status"] == "kept":
            verdict["attempts"] = fates[row_id].attempts if row_id in fates else 1
    return _with_column(rows, "verdict", pa.array(verdicts, columns.VERDICT))


def _set_aside(rows: pa.Table, stage: str, fates: Mapping[str, Fate]) -> pa.Table:
    """Fail those rows that have killed too many workers in this stage, with every column they have so far."""
    if not any(fate.stage == stage for fate in fates.values()):
        return rows
    verdicts = rows["verdict"].to_pylist()
    for verdict, row_id in zip(verdicts, _ids(rows), strict=True):
        fate = fates.get(row_id)
        if fate and fate.stage == stage and verdict["status"] == "kept":
            verdict |= {"status": "failed", "stage": stage, "reason": "WorkerDied", "message": fate.message}
    return _with_column(rows, "verdict", pa.array(verdicts, columns.VERDICT))


def judge(verdict: dict[str, Any], value: dict[str, Any] | None, gates: Sequence[Gate]) -> None:
    """Filter a kept verdict, in place, by the first gate that rejects the column's value."""
    for gate in gates:
        if verdict["status"] == "kept" and value is not None and gate.rejects(value):
            verdict |= {
                "status": "filtered",
                "stage": gate.column,
                "reason": gate.reason,
                "message": gate.message(value),
            }


def _limit_threads() -> None:
    """One thread a replica: two one-thread processes outrun one two-thread process."""
    if torch := sys.modules.get("torch"):  # only some stages need it, and importing it takes seconds
        torch.set_num_threads(1)
    threadpool_limits(1)


def _run(stage: Stage, batch: pa.Table) -> tuple[dict[str, pa.Array], dict[int, BaseException]]:
    """Columns and, by row, what went wrong. A batch that fails as a whole is repeated row by row."""
    try:
        return _cast(stage, stage.run(batch)), {}
    except (Exception, SystemExit) as error:  # an exit would end the worker
        if batch.num_rows == 1:
            return _cast(stage, {stage.column: [None], **{name: [None] for name in stage.wanted}}), {0: error}
    singles = [_run(stage, batch.slice(i, 1)) for i in range(batch.num_rows)]
    names = singles[0][0]
    merged = {name: pa.concat_arrays([single[name] for single, _ in singles]) for name in names}
    return merged, {i: errors[0] for i, (_, errors) in enumerate(singles) if errors}


def _cast(stage: Stage, values: dict[str, Any]) -> dict[str, pa.Array]:
    types = {stage.column: stage.type, **{name: stage.working[name] for name in stage.wanted}}
    return {name: pa.array(values[name], type) for name, type in types.items()}


def _fail(rows: pa.Table, stage: Stage, errors: dict[int, BaseException]) -> pa.Table:
    if not errors:
        return rows
    verdicts = rows["verdict"].to_pylist()
    for i, error in errors.items():
        verdicts[i] |= {
            "status": "failed",
            "stage": stage.name,
            "reason": type(error).__name__,
            "message": _describe(error),
        }
    return _with_column(rows, "verdict", pa.array(verdicts, columns.VERDICT))


def _describe(error: BaseException) -> str:
    """The message; for an error nobody foresaw also where it was raised."""
    message = str(error) or repr(error)
    if not isinstance(error, TrackError) and (frames := traceback.extract_tb(error.__traceback__)):
        message += f" (raised in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})"
    return message[:_MESSAGE_LIMIT]


def _placed(rows: pa.Table, name: str, values: pa.Array, measured_at: Mapping[int, int]) -> pa.Array:
    """Row i gets `values[measured_at[i]]`; a row that was not measured keeps what it brought, or null."""
    if len(measured_at) == rows.num_rows:
        return values
    brought = rows[name].combine_chunks() if name in rows.column_names else pa.nulls(rows.num_rows, values.type)
    places = [measured_at.get(i, len(values) + i) for i in range(rows.num_rows)]
    return pa.concat_arrays([values, brought.cast(values.type)]).take(pa.array(places, pa.int64()))


def _add_timing(rows: pa.Table, stage: str, live: list[int], seconds: float) -> pa.Table:
    timings = rows["timing"].to_pylist() if "timing" in rows.column_names else [[] for _ in range(rows.num_rows)]
    for i in live:
        timings[i] = [*(timings[i] or []), {"stage": stage, "seconds": seconds}]
    return _with_column(rows, "timing", pa.array(timings, columns.TIMING))


def _with_column(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in rows.column_names:
        return rows.set_column(rows.column_names.index(name), name, values)
    return rows.append_column(name, values)


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Exactly the declared columns, in order; those that no row has become null."""
    arrays = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _ids(rows: pa.Table) -> Iterator[str]:
    return iter(rows["row_id"].to_pylist())


def _statuses(rows: pa.Table) -> list[str]:
    return [verdict["status"] for verdict in rows["verdict"].to_pylist()]


def _report(finished: pa.Table, passed: Mapping[str, int]) -> Report:
    """Counted here and not by the driver, whose time is dear."""
    status = Counter(_statuses(finished))
    durations = pc.struct_field(finished["audio"], "duration_s") if "audio" in finished.column_names else None
    audio_s = pc.sum(durations).as_py() if durations is not None else None
    return Report(passed, dict(status), audio_s or 0.0)
