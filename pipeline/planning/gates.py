"""Gates judge what stages measured: one threshold on one field of one column."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from schemas.config import Thresholds


class GateError(ValueError):
    """A threshold that names no numeric field of its column."""


@dataclass(frozen=True)
class Gate:
    """`column.field` may not lie below (`min`) or above (`max`) `bound`. A null field passes: nothing was measured."""

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
        if measured is None:
            return False
        return measured < self.bound if self.side == "min" else measured > self.bound

    def rejected(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """The same of a whole column: never null."""
        beyond = pc.less if self.side == "min" else pc.greater
        return pc.fill_null(beyond(pc.struct_field(values, self.field), self.bound), False)

    def message(self, value: Mapping[str, Any]) -> str:
        """The measured figure against the threshold, for the verdict."""
        relation = "below" if self.side == "min" else "above"
        return f"{self.column}.{self.field} {value[self.field]:.6g} is {relation} {self.reason} {self.bound:g}"


def build_gates(config: Mapping[str, Thresholds], types: Mapping[str, pa.DataType]) -> tuple[Gate, ...]:
    """The gates of a configuration. Thresholds on columns that this run does not make are left out.

    Args:
        config: column -> {min_FIELD or max_FIELD: bound}.
        types: Arrow types of the columns that the DAG writes.

    Raises:
        GateError: a threshold's name or field does not fit its column.
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
