"""Run several stages over a batch in one process.

An exception fails one row only: it becomes the row's verdict, and later stages skip the row. Columns that a row already
has (stored by an earlier run) are not recomputed, and audio is decoded only if a stage has to run.

This module is independent of Ray: blocks are Arrow tables, and the current stage is reported to a `Recorder`.
"""

import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
IDENTITY = "identity"  # stage name of `prepare`, which reads the song's file or its stored columns


class StageCannotStart(DataProblem):
    """A stage's models or libraries cannot be loaded; retrying does not help."""


@dataclass(frozen=True)
class OperatorSpec:
    """Configuration of one operator.

    Attributes:
        nodes: its stages, in order.
        gates: thresholds, applied right after the stage that writes their column.
        carried: schema of its output: persisted columns, and working columns that a later operator reads.
        prepare: completes a block before the first stage, with identity columns (scan) or stored columns (curation).
        is_last: whether it is the last operator of the pass, after which rows count as done.
        spared: ids of rows that thresholds do not reject.
        untouched: ids of rows on which no stage runs: they are complete, and their files are missing.
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
    """Summary of a processed block; small, so that it reaches the driver before the block does.

    Attributes:
        passed: stage -> number of rows that completed it, successfully or with an error.
        status: verdict status -> number of rows; only from the last operator.
        audio_s: seconds of audio of the rows in `status`.
        seconds: stage -> seconds that it took.
        size: bytes of the processed block.
    """

    passed: Mapping[str, int]
    status: Mapping[str, int]
    audio_s: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    size: int = 0


class Recorder(Protocol):
    """Records the progress of an operator, so that the death of its process can be explained.

    Attributes:
        passed: stage -> number of rows that have completed it.
    """

    passed: Counter[str]

    def note(self, stage: str, row_ids: Sequence[str] = ()) -> None:
        """Record the stage that begins now, and its rows."""


class Operator:
    """One replica of an operator. A stage's models are loaded when the first row needs them.

    Raises:
        StageCannotStart: a stage cannot be built or set up.
    """

    def __init__(self, spec: OperatorSpec, recorder: Recorder) -> None:
        self.spec = spec
        self.recorder = recorder
        self._seconds: defaultdict[str, float] = defaultdict(float)  # of the block at hand
        self.stages = [_started(node, node.build) for node in spec.nodes]
        self._not_set_up = {node.name: node for node in spec.nodes}
        for stage in self.stages:
            later = {c for s in self.stages for c in (*s.reads, *s.reads_if_present)} | set(spec.carried.names)
            stage.wanted = frozenset(stage.working) & later
        self.batch_rows = min(stage.resources.batch_rows for stage in self.stages)

    def __call__(self, block: pa.Table, fates: Mapping[str, Fate]) -> tuple[Report, pa.Table]:
        """Run the stages and gates on every row of a block.

        Args:
            block: the rows.
            fates: row id -> fate, of those of its rows on which workers have died.

        Returns:
            The report, and the same rows in the same order with the columns of `OperatorSpec.carried`.
        """
        parts = (block.slice(start, self.batch_rows) for start in range(0, block.num_rows, self.batch_rows))
        self._seconds.clear()
        rows = pa.concat_tables(self._batch(part, fates) for part in parts)
        return self._report(rows), rows

    def _report(self, rows: pa.Table) -> Report:
        """Summarize the rows here, in the worker, to save time in the driver."""
        finished = rows if self.spec.is_last else rows.slice(0, 0)
        status = Counter(pc.struct_field(finished["verdict"], "status").to_pylist())
        durations = pc.struct_field(finished["audio"], "duration_s") if "audio" in finished.column_names else None
        audio_s = pc.sum(durations).as_py() if durations is not None else None
        return Report(dict(self.recorder.passed), dict(status), audio_s or 0.0, dict(self._seconds), rows.nbytes)

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
        rows = self.spec.prepare(states.encode(rows))  # it skips rejected rows, and may reject rows itself
        self.recorder.passed[IDENTITY] += rows.num_rows
        return rows, RowStates.decode(rows)

    def _due(self, rows: pa.Table, states: RowStates) -> set[str]:
        """Stages to run: those whose column a kept row lacks, and those that write working columns that these read."""
        live = self._live(states)
        due: set[str] = set()
        needed: set[str] = set(self.spec.carried.names)
        for stage in reversed(self.stages):
            if _is_lacking(rows, stage.column, live) or needed & set(stage.working):
                due.add(stage.name)
                needed |= {*stage.reads, *stage.reads_if_present}
        return due

    def _live(self, states: RowStates) -> list[int]:
        """Positions of the rows that stages run on."""
        return [row for row in states.kept if states.ids[row] not in self.spec.untouched]

    def _measure(self, stage: Stage, rows: pa.Table, states: RowStates) -> pa.Table:
        live = self._live(states)
        if not live:
            return rows
        batch = rows if len(live) == rows.num_rows else rows.take(live)
        self.recorder.note(stage.name, [states.ids[row] for row in live])
        self._set_up(stage)
        started = time.perf_counter()
        measured, errors = _run(stage, batch)
        seconds = time.perf_counter() - started
        self._seconds[stage.name] += seconds
        self.recorder.passed[stage.name] += len(live)
        measured_at = {row: k for k, row in enumerate(live) if k not in errors}
        for name, values in measured.items():
            rows = with_column(rows, name, _placed(rows, name, values, measured_at))
        for k, error in errors.items():
            states.fail(live[k], stage.name, type(error).__name__, _describe(error))
        states.add_timing(live, stage.name, seconds / len(live))
        return rows

    def _set_up(self, stage: Stage) -> None:
        """Load the stage's models at its first use; a run whose rows need no computation never loads them."""
        if node := self._not_set_up.pop(stage.name, None):
            _started(node, lambda: stage.setup(node.weights))
            _limit_threads()

    def _judge(self, column: str, rows: pa.Table, states: RowStates) -> None:
        """Apply the gates on this column to the kept rows; the first gate that rejects a row sets its verdict."""
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
    """Whether the column is null in one of these rows."""
    if column not in rows.column_names:
        return True
    return bool(rows[column].null_count) and not all(rows[column].is_valid().to_numpy()[live])


def _limit_threads() -> None:
    """Use one thread per replica: two single-threaded processes are faster than one with two threads."""
    if torch := sys.modules.get("torch"):  # do not import it: only some stages need it, and it takes seconds
        torch.set_num_threads(1)
    threadpool_limits(1)


def _run(stage: Stage, batch: pa.Table) -> tuple[dict[str, pa.Array], dict[int, BaseException]]:
    """Run a stage; a batch that fails as a whole is run again row by row.

    Returns:
        The written columns, and position in the batch -> error of each row that failed.
    """
    try:
        return _cast(stage, stage.run(batch)), {}
    except (Exception, SystemExit) as error:  # SystemExit would end the worker
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
    """The error's message; for an unexpected error also where it was raised."""
    message = str(error) or repr(error)
    if not isinstance(error, TrackError) and (frames := traceback.extract_tb(error.__traceback__)):
        message += f" (raised in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno})"
    return message[:_MESSAGE_LIMIT]


def _placed(rows: pa.Table, name: str, values: pa.Array, measured_at: Mapping[int, int]) -> pa.Array:
    """Row i gets `values[measured_at[i]]`; a row that was not measured keeps its value, or null."""
    if len(measured_at) == rows.num_rows:
        return values
    previous = rows[name].combine_chunks() if name in rows.column_names else pa.nulls(rows.num_rows, values.type)
    places = [measured_at.get(i, len(values) + i) for i in range(rows.num_rows)]
    return pa.concat_arrays([values, previous.cast(values.type)]).take(pa.array(places, pa.int64()))


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with exactly the columns of the schema; missing ones are null."""
    arrays = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)
