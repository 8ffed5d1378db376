"""Run several stages over a batch in one process.

One exception costs one row: it becomes the row's verdict, and later stages skip the row. Columns that a row brings
along (stored by an earlier run) are not measured again, and audio is only decoded when some stage is due.

Nothing here knows of Ray: blocks come and go as tables, and what the operator is at goes to a `Recorder`.
"""

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from threadpoolctl import threadpool_limits

from pipeline.errors import DataProblem
from pipeline.execution.fate import Fate
from pipeline.execution.row_states import RowStates, with_column
from pipeline.planning.dag import Node
from pipeline.planning.gates import Gate
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


class Recorder(Protocol):
    """Is told what an operator is at, for whoever has to explain the death of its process.

    Attributes:
        passed: stage -> rows that have come through it.
    """

    passed: Counter[str]

    def note(self, stage: str, row_ids: Sequence[str] = ()) -> None:
        """What comes next, and on which rows."""


class Operator:
    """A replica: its stages, each with its models loaded from the first row on that needs them.

    Raises:
        StageCannotStart: one of them is not to be had here.
    """

    def __init__(self, spec: OperatorSpec, recorder: Recorder) -> None:
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

    def _batch(self, rows: pa.Table, fates: Mapping[str, Fate]) -> pa.Table:
        rows, states = self._prepared(rows, fates)
        due = self._due(rows, states)
        for stage in self.stages:
            states.set_aside(stage.name, fates)
            if stage.name in due:
                rows = self._measure(stage, rows, states)
            self._judge(stage.column, rows, states)
        return _conform(states.encode(rows), self.spec.carried)

    def _prepared(self, rows: pa.Table, fates: Mapping[str, Fate]) -> tuple[pa.Table, RowStates]:
        states = RowStates.decode(rows)
        states.count_attempt(fates)
        states.set_aside(IDENTITY, fates)
        if not self.spec.prepare:
            return rows, states
        self.recorder.note(IDENTITY, states.ids)
        rows = self.spec.prepare(states.encode(rows))  # it passes over rejected rows, and may reject some itself
        self.recorder.passed[IDENTITY] += rows.num_rows
        return rows, RowStates.decode(rows)

    def _due(self, rows: pa.Table, states: RowStates) -> set[str]:
        """Stages to run: those whose column some kept row lacks, and the makers of working columns they read."""
        live = self._live(states)
        due: set[str] = set()
        needed: set[str] = set(self.spec.carried.names)
        for stage in reversed(self.stages):
            if _is_lacking(rows, stage.column, live) or needed & set(stage.working):
                due.add(stage.name)
                needed |= {*stage.reads, *stage.reads_if_present}
        return due

    def _live(self, states: RowStates) -> list[int]:
        """Rows that stages run on."""
        return [row for row in states.kept if states.ids[row] not in self.spec.untouched]

    def _measure(self, stage: Stage, rows: pa.Table, states: RowStates) -> pa.Table:
        live = self._live(states)
        if not live:
            return rows
        at_work = rows if len(live) == rows.num_rows else rows.take(live)
        self.recorder.note(stage.name, [states.ids[row] for row in live])
        self._wake(stage)
        started = time.perf_counter()
        measured, errors = _run(stage, at_work)
        seconds = (time.perf_counter() - started) / len(live)
        self.recorder.passed[stage.name] += len(live)
        measured_at = {row: k for k, row in enumerate(live) if k not in errors}
        for name, values in measured.items():
            rows = with_column(rows, name, _placed(rows, name, values, measured_at))
        for k, error in errors.items():
            states.fail(live[k], stage.name, type(error).__name__, _describe(error))
        states.add_timing(live, stage.name, seconds)
        return rows

    def _wake(self, stage: Stage) -> None:
        """Load the stage's models: rows that are rejected, or have its column already, never need them."""
        if node := self._asleep.pop(stage.name, None):
            _started(node, lambda: stage.setup(node.weights))
            _limit_threads()

    def _judge(self, column: str, rows: pa.Table, states: RowStates) -> None:
        """Filter every kept row by the first threshold on this column that rejects it."""
        if column not in rows.column_names:
            return
        for gate in self.spec.gates:
            if gate.column == column:
                for row in np.flatnonzero(gate.rejected(rows[column])).tolist():
                    if states.is_kept(row) and states.ids[row] not in self.spec.spared:
                        states.verdicts[row] |= gate.verdict(rows[column][row].as_py())


def _started(node: Node, start: Callable[[], Any]) -> Any:
    try:
        return start()
    except (Exception, SystemExit) as error:
        raise StageCannotStart(f"stage {node.name!r} cannot start: {_describe(error)}") from error


def _is_lacking(rows: pa.Table, column: str, live: Sequence[int]) -> bool:
    """Whether one of these rows has no value of a column."""
    if column not in rows.column_names:
        return True
    return bool(rows[column].null_count) and not all(rows[column].is_valid().to_numpy()[live])


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


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Exactly the declared columns, in order; those that no row has become null."""
    arrays = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _report(finished: pa.Table, passed: Mapping[str, int]) -> Report:
    """Counted here and not by the driver, whose time is dear."""
    status = Counter(pc.struct_field(finished["verdict"], "status").to_pylist())
    durations = pc.struct_field(finished["audio"], "duration_s") if "audio" in finished.column_names else None
    audio_s = pc.sum(durations).as_py() if durations is not None else None
    return Report(passed, dict(status), audio_s or 0.0)
