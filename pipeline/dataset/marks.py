"""Marks: a person's verdict on single rows, kept beside the dataset and honoured by `curate` and `train`.

`drop` turns a row away whatever the figures say; `keep` exempts it from thresholds and from being a copy. Marks outlive
every run: they name rows by their `row_id`, and nothing but this file changes when one is set.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from pydantic import BaseModel

from pipeline.errors import UsageProblem
from schemas.dataset import Layout
from schemas.files import written_whole
from schemas.tables import MARKS

Kind = Literal["keep", "drop"]


class Mark(BaseModel):
    """What a person said of a row, when, and why."""

    mark: Kind
    note: str | None = None
    marked_at: datetime


NO_MARKS: Mapping[str, Mark] = MappingProxyType({})


def read_marks(layout: Layout) -> dict[str, Mark]:
    """Row id -> its mark; empty where nobody has set one."""
    return marks_of(marks_table(layout))


def marks_of(table: pa.Table) -> dict[str, Mark]:
    """Row id -> its mark, of a table of schema `MARKS`."""
    return {row.pop("row_id"): Mark.model_validate(row) for row in table.to_pylist()}


def marks_table(layout: Layout) -> pa.Table:
    """The marks as they are stored, of schema `MARKS`."""
    if not layout.marks.is_file():
        return pa.Table.from_batches([], MARKS)  # not `empty_table`, which imports pandas, a second or two
    with pq.ParquetFile(layout.marks) as file:
        return file.read().select(MARKS.names).cast(MARKS)


def set_marks(layout: Layout, kinds: Mapping[str, str | None], note: str | None = None) -> None:
    """Mark rows, or take their marks away; several processes may do so at a time.

    Args:
        layout: the dataset.
        kinds: row id -> `keep`, `drop`, or None to take its mark away.
        note: why; stored with each mark.

    Raises:
        UsageProblem: a mark of another kind.
    """
    if unknown := sorted({kind for kind in kinds.values() if kind is not None} - {*get_args(Kind)}):
        raise UsageProblem(f"no mark {', '.join(unknown)}; there are {', '.join(get_args(Kind))}")
    now = datetime.now(UTC)
    replace_marks(
        layout,
        {
            row_id: None if kind is None else Mark.model_validate({"mark": kind, "note": note, "marked_at": now})
            for row_id, kind in kinds.items()
        },
    )


def replace_marks(layout: Layout, changed: Mapping[str, Mark | None]) -> None:
    """Let rows have these marks, or none; several processes may do so at a time."""
    with FileLock(layout.state / "marks.lock"):
        marks = read_marks(layout)
        for row_id, mark in changed.items():
            if mark is None:
                marks.pop(row_id, None)
            else:
                marks[row_id] = mark
        rows = [{"row_id": row_id, **mark.model_dump()} for row_id, mark in sorted(marks.items())]
        with written_whole(layout.marks) as draft:
            pq.write_table(pa.Table.from_pylist(rows, MARKS), draft)
