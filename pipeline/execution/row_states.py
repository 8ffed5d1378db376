"""Verdicts and timings of the rows of a batch as Python objects, beside the Arrow table of their columns.

Every stage may change them, and Arrow arrays are immutable. So they are decoded once when a batch enters an operator,
and encoded once when it leaves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.execution.fate import Fate
from schemas import columns


@dataclass
class RowStates:
    """Ids, verdicts and timings of a batch, each [rows].

    Attributes:
        ids: row ids.
        verdicts: values of `schemas.columns.VERDICT`; never null.
        timings: values of `schemas.columns.TIMING`; None if the batch had no such column and no stage has run yet.
    """

    ids: list[str]
    verdicts: list[dict[str, Any]]
    timings: list[list[dict[str, Any]] | None] | None

    @classmethod
    def decode(cls, rows: pa.Table) -> "RowStates":
        """The states of a table with columns `row_id`, `verdict` and optionally `timing`."""
        timings = rows["timing"].to_pylist() if "timing" in rows.column_names else None
        return cls(rows["row_id"].to_pylist(), rows["verdict"].to_pylist(), timings)

    def encode(self, rows: pa.Table) -> pa.Table:
        """The table with columns `verdict` and, if there are timings, `timing` replaced."""
        rows = with_column(rows, "verdict", pa.array(self.verdicts, columns.VERDICT))
        return rows if self.timings is None else with_column(rows, "timing", pa.array(self.timings, columns.TIMING))

    def is_kept(self, row: int) -> bool:
        """Whether the row's status is still `kept`."""
        return bool(self.verdicts[row]["status"] == "kept")

    @property
    def kept(self) -> list[int]:
        """Positions of the rows whose status is still `kept`."""
        return [row for row in range(len(self.ids)) if self.is_kept(row)]

    def count_attempt(self, fates: Mapping[str, Fate]) -> None:
        """Set the number of attempts of every kept row: 1, or as in its fate."""
        for row in self.kept:
            fate = fates.get(self.ids[row])
            self.verdicts[row]["attempts"] = fate.attempts if fate else 1

    def set_aside(self, stage: str, fates: Mapping[str, Fate]) -> None:
        """Fail the rows on which too many workers have died in this stage."""
        if not any(fate.stage == stage for fate in fates.values()):
            return
        for row in self.kept:
            fate = fates.get(self.ids[row])
            if fate and fate.stage == stage:
                self.fail(row, stage, "WorkerDied", fate.message)

    def fail(self, row: int, stage: str, reason: str, message: str) -> None:
        """Set a row's verdict to failed."""
        self.verdicts[row] |= {"status": "failed", "stage": stage, "reason": reason, "message": message}

    def add_timing(self, rows: Iterable[int], stage: str, seconds: float) -> None:
        """Add the time of a stage, in seconds per row, to each of these rows."""
        if self.timings is None:
            self.timings = [[] for _ in self.ids]
        for row in rows:
            self.timings[row] = [*(self.timings[row] or []), {"stage": stage, "seconds": seconds}]


def with_column(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """The table with a column replaced, or appended if it has none of that name."""
    if name in rows.column_names:
        return rows.set_column(rows.column_names.index(name), name, values)
    return rows.append_column(name, values)
