"""Marks: users' manual verdicts on single rows, stored beside the dataset and applied by `curate` and `train`.

`drop` rejects a row regardless of its measurements; `keep` exempts it from thresholds and duplicate detection. Marks
refer to rows by `row_id` and survive every run; setting one changes no other file of the dataset.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline.dataset.shard_files import in_memory
from pipeline.errors import UsageProblem
from schemas.dataset import Layout
from schemas.tables import MARKS

Kind = Literal["keep", "drop"]


class Mark(BaseModel):
    """A user's mark on a row: the verdict, the reason and the time (UTC)."""

    mark: Kind
    note: str | None = None
    marked_at: datetime


NO_MARKS: Mapping[str, Mark] = MappingProxyType({})


def read_marks(layout: Layout) -> dict[str, Mark]:
    """Row id -> mark; empty if no marks are set."""
    return marks_of(marks_table(layout))


def marks_of(table: pa.Table) -> dict[str, Mark]:
    """Row id -> mark, from a table of schema `MARKS`."""
    return {row.pop("row_id"): Mark.model_validate(row) for row in table.to_pylist()}


def marks_table(layout: Layout) -> pa.Table:
    """The marks as a table of schema `MARKS`."""
    try:
        return _table(layout.store.get(layout.marks))
    except FileNotFoundError:
        return _table(None)


def set_marks(layout: Layout, kinds: Mapping[str, str | None], note: str | None = None) -> None:
    """Set or remove marks; safe to call from several processes at once.

    Args:
        layout: the dataset.
        kinds: row id -> `keep`, `drop`, or None to remove the mark.
        note: the reason; stored with each mark.

    Raises:
        UsageProblem: unknown kind of mark.
    """
    if unknown := sorted({kind for kind in kinds.values() if kind is not None} - {*get_args(Kind)}):
        raise UsageProblem(f"unknown mark {', '.join(unknown)}; use one of {', '.join(get_args(Kind))}")
    now = datetime.now(UTC)
    replace_marks(
        layout,
        {
            row_id: None if kind is None else Mark.model_validate({"mark": kind, "note": note, "marked_at": now})
            for row_id, kind in kinds.items()
        },
    )


def replace_marks(layout: Layout, changed: Mapping[str, Mark | None]) -> None:
    """Replace the marks of these rows; None removes a mark. Safe to call from several processes at once."""

    def change(there: bytes | None) -> bytes:
        marks = marks_of(_table(there))
        for row_id, mark in changed.items():
            if mark is None:
                marks.pop(row_id, None)
            else:
                marks[row_id] = mark
        rows = [{"row_id": row_id, **mark.model_dump()} for row_id, mark in sorted(marks.items())]
        return in_memory(pa.Table.from_pylist(rows, MARKS))

    layout.store.update(layout.marks, change)


def _table(content: bytes | None) -> pa.Table:
    if content is None:
        return pa.Table.from_batches([], MARKS)  # not `empty_table`: it imports pandas, which takes a second
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        return file.read().select(MARKS.names).cast(MARKS)
