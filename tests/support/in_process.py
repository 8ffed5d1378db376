"""`curate` without a cluster: its passes are played in this process, so that a run takes a tenth of a second.

Everything that decides what is done and everything that writes is the real thing; what is played is the way of blocks
through workers. Every stage run is counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pyarrow as pa
import pytest

import pipeline.curation.curate
import pipeline.curation.scan
import pipeline.dataset.writing
from pipeline.execution.operator import OperatorSpec
from schemas import columns

Run = tuple[str, str]  # a stage, and the uri it ran on


def play_cluster(patch: pytest.MonkeyPatch) -> Counter[Run]:
    """Let `pipeline.curation.curate.curate` work in this process; what stages have run on, kept up to date."""
    ran: Counter[Run] = Counter()
    for module in (pipeline.curation.curate, pipeline.curation.scan):
        patch.setattr(module, "run_pass", partial(_run_pass, ran))
    patch.setattr(pipeline.curation.curate, "cluster", lambda *_, **__: nullcontext())
    patch.setattr(pipeline.curation.curate, "check_placeable", lambda *_: None)
    patch.setattr(pipeline.curation.curate, "in_rounds", _one_round)
    patch.setattr(pipeline.dataset.writing, "write_card", lambda *_: None)  # a third of such a run
    return ran


def _one_round(_title: str, rows: pa.Table, left: Callable[[], pa.Table], work: Any, *_: Any, **__: Any) -> None:
    if rows.num_rows:
        work(rows, None)
        assert not left().num_rows, "a pass left rows undone"


def _run_pass(
    ran: Counter[Run],
    rows: pa.Table,
    operators: Sequence[OperatorSpec],
    sink: Any,
    _resources: Any,
    _counts: Any,
    complete: Callable[[pa.Table], pa.Table] | None = None,
) -> Iterator[Any]:
    for start in range(rows.num_rows):
        block = rows.slice(start, 1)
        block = complete(block) if complete else block
        for operator in operators:
            block = _through(operator, block, ran)
        yield from sink(block)


def _through(operator: OperatorSpec, block: pa.Table, ran: Counter[Run]) -> pa.Table:
    """One row through an operator: a stage runs if its column is absent, or a working one that such a stage reads."""
    (row,) = (operator.prepare(block) if operator.prepare else block).to_pylist()
    verdict, due, needed = row["verdict"], set(), set()
    for node in reversed(operator.nodes):
        stage = node.stage_type
        if row.get(node.column) is None or needed & {*stage.working}:
            due.add(node.name)
            needed |= {*stage.reads, *stage.reads_if_present}
    for node in operator.nodes:
        stage = node.build()
        stage.wanted = frozenset(stage.working)
        if node.name in due and verdict["status"] == "kept" and row["row_id"] not in operator.untouched:
            ran[node.name, row["uri"]] += 1
            try:
                row |= {name: values[0] for name, values in stage.run(_as_table(row, stage)).items()}
            except Exception as error:
                reason, message = type(error).__name__, str(error)
                verdict |= {"status": "failed", "stage": node.name, "reason": reason, "message": message}
        for gate in operator.gates:
            value = row.get(node.column)
            if gate.column == node.column and verdict["status"] == "kept" and gate.rejects(value):
                said = {"stage": gate.column, "reason": gate.reason, "message": gate.message(value)}
                verdict |= {"status": "filtered", **said}
    return pa.table({field.name: pa.array([row.get(field.name)], field.type) for field in operator.carried})


def _as_table(row: dict[str, Any], stage: Any) -> pa.Table:
    types = {**stage.reads, **stage.reads_if_present}
    identity = {field.name: field.type for field in columns.IDENTITY}
    return pa.table({name: pa.array([row.get(name)], type) for name, type in {**identity, **types}.items()})
