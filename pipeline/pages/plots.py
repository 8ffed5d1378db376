"""Figures of a dataset as plots: what values they take, where rows are turned away, what takes the time."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from pipeline.dag import NATIVE
from pipeline.gates import Gate
from pipeline.pages.row import unit
from pipeline.plan import Plan, StagePlan
from pipeline.stats import VerdictCount
from schemas.dataset import FEATURES

_BINS = 24
_EVERY = "(select * from tracks union all by name select * from quarantine)"


@dataclass(frozen=True)
class Bin:
    """Rows whose figure lies in `low` to `high`."""

    low: float
    high: float
    rows: int
    kept: int


@dataclass(frozen=True)
class Histogram:
    """How a figure spreads over the rows that have it.

    Attributes:
        thresholds: (side, bound) of the gates that judge it.
        median: over all rows.
    """

    column: str
    field: str
    unit: str | None
    bins: Sequence[Bin]
    median: float
    thresholds: Sequence[tuple[str, float]]

    @property
    def low(self) -> float:
        """The least value."""
        return self.bins[0].low

    @property
    def high(self) -> float:
        """The greatest value."""
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
        """Where a value lies between `low` and `high`, 0..1; None outside."""
        if not self.low <= value <= self.high:
            return None
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


@dataclass(frozen=True)
class Step:
    """A step of the DAG: rows that enter it, and those it turned away, by status and reason."""

    name: str
    entering: int
    turned_away: Mapping[str, int]

    @property
    def leaving(self) -> int:
        """Rows that go on."""
        return self.entering - sum(self.turned_away.values())


def histograms(connection: duckdb.DuckDBPyConnection, gates: Iterable[Gate]) -> list[Histogram]:
    """One for every figure that rows of the dataset have, in the columns' order."""
    judged = defaultdict(list)
    for gate in gates:
        judged[gate.column, gate.field].append((gate.side, gate.bound))
    schema = connection.sql(f"from {_EVERY} limit 0").to_arrow_table().schema  # type: ignore[union-attr]
    found = (_histogram(connection, column, name, judged[column, name]) for column, name in _figures(schema))
    return [histogram for histogram in found if histogram]


def _figures(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    for column in schema:
        if pa.types.is_struct(column.type) and column.name not in ("verdict", *FEATURES):
            for field in column.type:
                if pa.types.is_floating(field.type) or pa.types.is_integer(field.type):
                    yield column.name, field.name


def _histogram(
    connection: duckdb.DuckDBPyConnection, column: str, field: str, thresholds: Sequence[tuple[str, float]]
) -> Histogram | None:
    figure = f'"{column}"."{field}"::double'
    values = f"select {figure} as v, verdict.status = 'kept' as kept from {_EVERY} where isfinite({figure})"
    spread = connection.execute(f"select min(v), max(v), median(v) from ({values})").fetchone()
    low, high, median = spread or (None, None, None)
    if low is None:
        return None
    width = (high - low) / _BINS or 1.0
    counts = connection.execute(
        f"select least(floor((v - ?) / ?), {_BINS - 1})::int, count(*), count(*) filter (kept) "
        f"from ({values}) group by 1",
        [low, width],
    ).fetchall()
    by_bin = {number: (rows, kept) for number, rows, kept in counts}
    last = _BINS if high > low else 1
    bins = [Bin(low + i * width, low + (i + 1) * width, *by_bin.get(i, (0, 0))) for i in range(last)]
    bins[-1] = Bin(bins[-1].low, max(high, bins[-1].low), bins[-1].rows, bins[-1].kept)
    return Histogram(column, field, unit(column, field), bins, median, thresholds)


def funnel(plan: Plan, verdicts: Iterable[VerdictCount], rows: int) -> list[Step]:
    """Every step in the order in which rows meet it.

    Args:
        plan: the dataset's.
        verdicts: of the rows that were turned away.
        rows: of the whole dataset.
    """
    away: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for verdict in verdicts:
        told = f"{verdict.status}: {verdict.reason or verdict.status}"
        away[verdict.stage or ""][told] = away[verdict.stage or ""].get(told, 0) + verdict.rows
    steps = []
    for name, stages in _order(plan, away):
        turned_away: dict[str, int] = {}
        for stage in stages:
            turned_away |= away.get(stage, {})
        steps.append(Step(name, rows, turned_away))
        rows = steps[-1].leaving
    return steps


def _order(plan: Plan, away: Iterable[str]) -> list[tuple[str, set[str]]]:
    """Step -> what verdicts call it: stages fail under their name, gates reject under their column's."""
    stages = [(column, stage) for column, stage in plan.columns.items() if column not in FEATURES]
    scan = [_step(column, stage) for column, stage in stages if _is_scan(stage)]
    later = [_step(column, stage) for column, stage in stages if not _is_scan(stage)]
    between = [("license", {"license"}), ("dedup", {"dedup"})]
    known = set().union(*(names for _, names in [*scan, *between, *later]))
    others = [(name or "pending", {name}) for name in sorted({*away} - known)]
    between = [step for step in between if step[0] in away or (step[0] == "dedup" and plan.dedup)]
    return [*scan, *between, *others, *later]


def _step(column: str, stage: StagePlan) -> tuple[str, set[str]]:
    return stage.name, {stage.name, column}


def _is_scan(stage: StagePlan) -> bool:
    return NATIVE in stage.working or NATIVE in stage.reads
