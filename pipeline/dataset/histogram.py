"""How many rows fall into equally wide bins, counted by DuckDB: of many figures in one pass."""

from collections.abc import Sequence
from typing import NamedTuple

import duckdb


class Bins(NamedTuple):
    """Equally wide bins of a figure; the outer ones take in what lies beyond them.

    Attributes:
        figure: SQL of a double.
        low: where the first bin begins.
        high: where the last one ends.
        number: of bins.
        where: SQL condition on the rows that count; rows whose figure is null or not finite never do.
    """

    figure: str
    low: float
    high: float
    number: int
    where: str = "true"

    @classmethod
    def between(cls, figure: str, low: float, high: float, most: int, where: str = "true") -> "Bins":
        """As many as wanted, or a single one where there is nothing between `low` and `high`."""
        return cls(figure, low, high, most if high > low else 1, where)

    @property
    def width(self) -> float:
        """Of a bin."""
        return (self.high - self.low) / self.number or 1.0

    @property
    def borders(self) -> list[float]:
        """Where one bin ends and the next begins."""
        return [self.low + i * self.width for i in range(1, self.number)]


def count_bins(connection: duckdb.DuckDBPyConnection, source: str, asked: Sequence[Bins]) -> list[list[int]]:
    """Rows in each bin of what is asked.

    Args:
        connection: to the dataset.
        source: SQL of a table.
        asked: bins of its figures.
    """
    if not asked:
        return []
    wanted = [
        f"histogram(greatest(least(floor(({bins.figure} - ?) / ?), {bins.number - 1}), 0)::int) "
        f"filter (isfinite({bins.figure}) and {bins.where})"
        for bins in asked
    ]
    values = [value for bins in asked for value in (bins.low, bins.width)]
    found = connection.execute(f"select {', '.join(wanted)} from {source}", values).fetchone() or ()
    return [[(counts or {}).get(i, 0) for i in range(bins.number)] for bins, counts in zip(asked, found, strict=True)]
