"""Histograms of a dataset's numeric fields ("figures"), over all rows and over kept rows."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from pipeline.dataset.histogram import Bins, count_bins
from pipeline.pages.row import unit
from pipeline.planning.gates import Gate
from schemas.dataset import FEATURES

_BINS = 24
_NULL = "null::double"


@dataclass(frozen=True)
class Bin:
    """Number of rows, and of kept rows, whose figure is between `low` and `high`."""

    low: float
    high: float
    rows: int
    kept: int


@dataclass(frozen=True)
class Histogram:
    """The distribution of a figure over the rows that have it.

    Attributes:
        column: the column of the figure.
        field: its field in that column.
        unit: its unit, if any.
        bins: equally wide, in ascending order.
        median: median over all rows.
        thresholds: (side, bound) of the gates that judge it.
    """

    column: str
    field: str
    unit: str | None
    bins: Sequence[Bin]
    median: float
    thresholds: Sequence[tuple[str, float]]

    @property
    def low(self) -> float:
        """The smallest value."""
        return self.bins[0].low

    @property
    def high(self) -> float:
        """The largest value."""
        return self.bins[-1].high

    @property
    def rows(self) -> int:
        """Rows that have the figure."""
        return sum(bin.rows for bin in self.bins)

    @property
    def highest(self) -> int:
        """Rows in the fullest bin."""
        return max(bin.rows for bin in self.bins)

    def share(self, value: float) -> float | None:
        """The relative position of a value between `low` and `high`, 0..1; None outside."""
        if not self.low <= value <= self.high:
            return None
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def histograms(connection: duckdb.DuckDBPyConnection, gates: Iterable[Gate]) -> list[Histogram]:
    """One histogram for every figure in the dataset, in the order of columns, in two passes over the data."""
    judged = defaultdict(list)
    for gate in gates:
        judged[gate.column, gate.field].append((gate.side, gate.bound))
    table = _Table.of(connection)
    spreads = table.spreads(connection)
    return [
        Histogram(*figure, unit(*figure), bins, spreads[figure].median, judged[figure])
        for figure, bins in table.bins(connection, spreads).items()
    ]


class _Spread(NamedTuple):
    low: float
    high: float
    median: float


@dataclass(frozen=True)
class _Table:
    """All rows, reduced to their figures f0, f1, ..., and whether they are `kept`.

    Selected from each view separately: for a union of whole rows, DuckDB would read every column.
    """

    figures: Sequence[tuple[str, str]]
    sql: str

    @classmethod
    def of(cls, connection: duckdb.DuckDBPyConnection) -> "_Table":
        """The table of the views `tracks` and `quarantine`."""
        views = {view: list(_figures(connection, view)) for view in ("tracks", "quarantine")}
        figures = list(dict.fromkeys(figure for there in views.values() for figure in there))
        selects = (
            f"select {''.join(f'{_number(f) if f in there else _NULL} as f{i}, ' for i, f in enumerate(figures))}"
            f"verdict.status = 'kept' as kept from {view}"
            for view, there in views.items()
        )
        return cls(figures, f"({' union all '.join(selects)})")

    def spreads(self, connection: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], _Spread]:
        """Minimum, maximum and median of those figures that any row has."""
        wanted = [
            f"{aggregate}(f{i}) filter (isfinite(f{i}))"
            for i in range(len(self.figures))
            for aggregate in ("min", "max", "median")
        ]
        if not wanted:
            return {}
        found = _groups(connection.execute(f"select {', '.join(wanted)} from {self.sql}").fetchone() or (), 3)
        return {f: _Spread(*spread) for f, spread in zip(self.figures, found, strict=True) if None not in spread}

    def bins(
        self, connection: duckdb.DuckDBPyConnection, spreads: Mapping[tuple[str, str], _Spread]
    ) -> dict[tuple[str, str], list[Bin]]:
        """Of the figures with a spread."""
        names = {figure: f"f{i}" for i, figure in enumerate(self.figures)}
        asked = [
            Bins.between(names[figure], spread.low, spread.high, _BINS, where)
            for figure, spread in spreads.items()
            for where in ("true", "kept")
        ]
        counted = zip(asked[::2], _groups(count_bins(connection, self.sql, asked), 2), strict=True)
        return {figure: list(_filled(*found)) for figure, found in zip(spreads, counted, strict=True)}


def _figures(connection: duckdb.DuckDBPyConnection, view: str) -> Iterator[tuple[str, str]]:
    schema = connection.sql(f"from {view} limit 0").to_arrow_table().schema  # type: ignore[union-attr]
    for column in schema:
        if pa.types.is_struct(column.type) and column.name not in ("verdict", *FEATURES):
            for field in column.type:
                if pa.types.is_floating(field.type) or pa.types.is_integer(field.type):
                    yield column.name, field.name


def _filled(bins: Bins, counts: tuple[Sequence[int], Sequence[int]]) -> Iterator[Bin]:
    """The bins with their rows, and with those of them that are kept."""
    edges = pairwise([bins.low, *bins.borders, bins.high])
    for (low, high), rows, kept in zip(edges, *counts, strict=True):
        yield Bin(low, high, rows, kept)


def _groups(values: Sequence[Any], size: int) -> Iterator[tuple[Any, ...]]:
    remaining = iter(values)
    while group := tuple(islice(remaining, size)):
        yield group


def _number(figure: tuple[str, str]) -> str:
    column, field = (name.replace('"', '""') for name in figure)
    return f'"{column}"."{field}"::double'
