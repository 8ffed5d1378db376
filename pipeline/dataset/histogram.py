"""Histograms with equal bin widths, counted by DuckDB for many expressions in one pass."""

from collections.abc import Sequence
from typing import NamedTuple

import duckdb


class Bins(NamedTuple):
    """Bins of equal width over an expression; values outside the range are counted in the first and last bin.

    Attributes:
        figure: SQL expression of type double.
        low: lower edge of the first bin.
        high: upper edge of the last bin.
        number: number of bins.
        where: SQL condition on the rows to count; rows whose value is null or not finite are never counted.
    """

    figure: str
    low: float
    high: float
    number: int
    where: str = "true"

    @classmethod
    def between(cls, figure: str, low: float, high: float, most: int, where: str = "true") -> "Bins":
        """`most` bins from `low` to `high`, or a single one if the range is empty."""
        return cls(figure, low, high, most if high > low else 1, where)

    @property
    def width(self) -> float:
        """Width of one bin."""
        return (self.high - self.low) / self.number or 1.0

    @property
    def borders(self) -> list[float]:
        """Inner edges, `number` - 1 of them."""
        return [self.low + i * self.width for i in range(1, self.number)]


def count_bins(connection: duckdb.DuckDBPyConnection, source: str, asked: Sequence[Bins]) -> list[list[int]]:
    """Count the rows in each bin.

    Args:
        connection: the DuckDB connection.
        source: SQL of the table or subquery.
        asked: the histograms to count.

    Returns:
        Counts [number of bins] for each of `asked`.
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
