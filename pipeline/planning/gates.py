"""Gates: thresholds on what stages measured, each on one field of one column.

This module holds the only implementation of the comparison, for one row, for an Arrow column and as DuckDB SQL. All
three compare in double precision, and a null or NaN passes.
"""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.config import Thresholds

_BEYOND = {"min": operator.lt, "max": operator.gt}
_SQL = {"min": "<", "max": ">"}
_WORDS = {"min": "below", "max": "above"}


class GateError(ValueError):
    """A threshold on a field that its column does not have or that is not numeric."""


@dataclass(frozen=True)
class Gate:
    """Rejects rows whose `column.field` is below (`min`) or above (`max`) `bound`; a null field passes."""

    column: str
    field: str
    side: str
    bound: float

    @property
    def reason(self) -> str:
        """The threshold's name, as configured: `min_bandwidth_hz`."""
        return f"{self.side}_{self.field}"

    def rejects(self, value: Mapping[str, Any] | None) -> bool:
        """Whether a row with this value of the column is filtered."""
        measured = None if value is None else value[self.field]
        return measured is not None and bool(_BEYOND[self.side](measured, self.bound))

    def rejected(self, values: pa.ChunkedArray) -> np.ndarray:
        """`rejects` for a whole column.

        Args:
            values: struct column, [rows].

        Returns:
            bool [rows], true where the row is filtered.
        """
        field = values.type.get_field_index(self.field)
        figures = (chunk.flatten()[field].to_numpy(zero_copy_only=False) for chunk in values.chunks)
        # Nulls become NaN, which is neither below nor above. In float32 a value could round to the bound.
        return np.concatenate(
            [np.empty(0, bool), *(_BEYOND[self.side](part.astype(np.float64), self.bound) for part in figures)]
        )

    @property
    def sql(self) -> str:
        """`rejects` as a DuckDB condition, never null. NaN is excluded since DuckDB orders it above every number."""
        measured = f'"{self.column}"."{self.field}"::double'
        return f"coalesce({measured} {_SQL[self.side]} '{self.bound!r}'::double and not isnan({measured}), false)"

    def verdict(self, value: Mapping[str, Any]) -> dict[str, str]:
        """Verdict fields of a row that this gate rejects: status, stage, reason and message."""
        return {"status": "filtered", "stage": self.column, "reason": self.reason, "message": self.message(value)}

    def message(self, value: Mapping[str, Any]) -> str:
        """The verdict's message: the measured value and the threshold it violates."""
        relation = _WORDS[self.side]
        return f"{self.column}.{self.field} {value[self.field]:.6g} is {relation} {self.reason} {self.bound:g}"


def first_rejecting(gates: Iterable[Gate], row: Mapping[str, Any]) -> Gate | None:
    """The first gate that rejects a row; None if it passes all of them.

    Args:
        gates: in judging order, see `in_judging_order`.
        row: must have the gates' columns.
    """
    return next((gate for gate in gates if gate.rejects(row[gate.column])), None)


def first_rejecting_sql(gates: Iterable[Gate]) -> str:
    """`first_rejecting` as a DuckDB expression: the gate's `column.reason`, or null."""
    cases = "".join(f" when {gate.sql} then '{gate.column}.{gate.reason}'" for gate in gates)
    return f"case{cases} end" if cases else "null"


def in_judging_order(gates: Iterable[Gate], columns: Iterable[str]) -> tuple[Gate, ...]:
    """Gates sorted by their column's position in `columns`, the stages' order; within a column as configured."""
    order = list(columns)
    return tuple(sorted(gates, key=lambda gate: order.index(gate.column)))


def build_gates(config: Mapping[str, Thresholds], types: Mapping[str, pa.DataType]) -> tuple[Gate, ...]:
    """The gates of a configuration. Thresholds on columns that this run does not write are left out.

    Args:
        config: column -> {min_FIELD or max_FIELD: bound}.
        types: Arrow types of the columns that the DAG writes.

    Raises:
        GateError: a threshold is not named min_FIELD or max_FIELD with a numeric field of its column.
    """
    return tuple(
        _gate(column, name, bound, types[column])
        for column, thresholds in config.items()
        if column in types
        for name, bound in thresholds.items()
    )


def _gate(column: str, name: str, bound: float, type: pa.DataType) -> Gate:
    side, _, field = name.partition("_")
    fields = {f.name: f.type for f in type} if pa.types.is_struct(type) else {}
    numeric = [n for n, t in fields.items() if pa.types.is_floating(t) or pa.types.is_integer(t)]
    if side not in ("min", "max") or field not in numeric:
        raise GateError(
            f"gates.{column}.{name}: no such threshold; use min_ or max_ before one of {', '.join(numeric) or 'none'}"
        )
    return Gate(column, field, side, float(bound))
