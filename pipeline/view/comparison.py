"""`songmill inspect --compare`: two datasets, or two runs of one, side by side."""

from collections.abc import Mapping

import duckdb
import pyarrow as pa
from pydantic import BaseModel

from pipeline.dataset.duckdb_connection import new_connection
from pipeline.dataset.stats import Distribution, Stats, connect
from pipeline.dataset.stats_cache import current_stats
from pipeline.planning.plan import Plan
from schemas.commits import read_records
from schemas.dataset import Layout

_NAMED = 20  # example rows per kind
_MOST_COMMON = 12
_VERDICTS = pa.schema([(name, pa.string()) for name in ("row_id", "track_id", "title", "uri", "verdict")])


class Pair(BaseModel):
    """One number for both sides; 0 for a side that has none."""

    a: int | float
    b: int | float


class Shift(BaseModel):
    """How the distribution of a numeric field differs.

    Attributes:
        column: the field.
        a: quartiles of side a: 25 %, 50 %, 75 %.
        b: quartiles of side b.
        distance: the greatest difference between the shares of rows below any value (Kolmogorov-Smirnov statistic),
            0..1, over the bin edges of both histograms; 0 for the same distribution.
    """

    column: str
    a: list[float | None]
    b: list[float | None]
    distance: float | None


class Row(BaseModel):
    """A row of either side and its verdict on each; None on a side that does not have the row."""

    row_id: str
    title: str | None
    uri: str | None
    a: str | None
    b: str | None


class Moved(BaseModel):
    """How many rows have this pair of verdicts: `kept`, or stage and reason."""

    a: str
    b: str
    rows: int


class Comparison(BaseModel):
    """What differs between dataset a and dataset b.

    Attributes:
        rows: rows by status.
        hours: hours by status.
        reasons: rows turned away, by stage and reason.
        shifts: differences in the distributions of kept rows.
        values: column -> value -> kept rows.
        plan: how b's plan differs from a's.
        matched_by: `row_id`, or `track_id` if the two have no row id in common.
        only_a: number of rows that only a has.
        only_b: number of rows that only b has.
        moved: rows whose verdict differs.
        examples: a few rows of each kind.
    """

    rows: dict[str, Pair]
    hours: dict[str, Pair]
    reasons: dict[str, Pair]
    shifts: list[Shift]
    values: dict[str, dict[str, Pair]]
    plan: list[str]
    matched_by: str
    only_a: int
    only_b: int
    moved: list[Moved]
    examples: dict[str, list[Row]]


def compare(a: Layout, b: Layout) -> Comparison:
    """Compare two datasets.

    Raises:
        NoDataset: one of the folders does not contain a dataset.
    """
    stats = current_stats(a), current_stats(b)
    plans = [Plan.model_validate_json(layout.store.get(layout.plan)) for layout in (a, b)]
    connection, matched_by = _joined(a, b)
    return Comparison(
        rows=_pairs(*(side.rows for side in stats)),
        hours=_pairs(*(side.hours for side in stats)),
        reasons=_pairs(*(_reasons(side) for side in stats)),
        shifts=_shifts(*stats),
        values=_values(*stats),
        plan=plans[0].differences(plans[1]),
        matched_by=matched_by,
        only_a=_count(connection, _KINDS["only_a"]),
        only_b=_count(connection, _KINDS["only_b"]),
        moved=_moved(connection),
        examples={kind: _examples(connection, where) for kind, where in _KINDS.items()},
    )


_KINDS = {"only_a": "b is null", "only_b": "a is null", "moved": "a != b"}


def _pairs(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, Pair]:
    """Every name of either side, a's first; a side that lacks a name counts as 0."""
    return {name: Pair(a=a.get(name, 0), b=b.get(name, 0)) for name in dict.fromkeys([*a, *b])}


def _reasons(stats: Stats) -> dict[str, float]:
    return {f"{v.status} {v.stage}.{v.reason}": v.rows for v in stats.verdicts}


def _values(a: Stats, b: Stats) -> dict[str, dict[str, Pair]]:
    """The most common values of either side, for the columns whose values were counted."""
    values = {}
    for column in dict.fromkeys([*a.counts, *b.counts]):
        pairs = _pairs(a.counts.get(column, {}), b.counts.get(column, {}))
        most = sorted(pairs.items(), key=lambda item: -max(item[1].a, item[1].b))
        if most:
            values[column] = dict(most[:_MOST_COMMON])
    return values


def _shifts(a: Stats, b: Stats) -> list[Shift]:
    sides = [{spread.column: spread for spread in side.distributions} for side in (a, b)]
    shifts = []
    for column in dict.fromkeys(column for side in sides for column in side):
        left, right = (side.get(column) for side in sides)
        both = left and right and left.count and right.count
        shifts.append(
            Shift(
                column=column,
                a=_quartiles(left),
                b=_quartiles(right),
                distance=_distance(left, right) if both and left and right else None,
            )
        )
    return shifts


def _quartiles(spread: Distribution | None) -> list[float | None]:
    return [spread.p25, spread.median, spread.p75] if spread else [None] * 3


def _distance(a: Distribution, b: Distribution) -> float:
    borders = sorted({*a.edges, *b.edges})
    return max(abs(_share_below(a, border) - _share_below(b, border)) for border in borders)


def _share_below(spread: Distribution, value: float) -> float:
    """The share of rows below a value, interpolated within a bin."""
    below = 0.0
    for low, high, count in zip(spread.edges, spread.edges[1:], spread.counts, strict=False):
        if value >= high:
            below += count
        elif value > low:
            below += count * (value - low) / (high - low)
    return below / spread.count


def _joined(a: Layout, b: Layout) -> tuple[duckdb.DuckDBPyConnection, str]:
    """Table `pairs`, every row of either side with its verdict on both, and the column that they were matched by."""
    connection = new_connection()
    for name, layout in (("a_rows", a), ("b_rows", b)):
        table = _verdicts(layout)
        connection.register("read", table)
        connection.execute(f"create table {name} as select * from read")
    common = connection.execute("select count(*) from a_rows join b_rows using (row_id)").fetchone() or (0,)
    key = "row_id" if common[0] else "track_id"
    for name in ("a_rows", "b_rows"):  # of several copies of a track, the kept one counts
        connection.execute(f"""
            create table {name}_once as select * from {name}
            qualify {key} is null or row_number() over (partition by {key} order by verdict != 'kept', row_id) = 1
        """)
    connection.execute(f"""
        create table pairs as
        select coalesce(x.row_id, y.row_id) as row_id, coalesce(x.title, y.title) as title,
          coalesce(x.uri, y.uri) as uri, x.verdict as a, y.verdict as b
        from a_rows_once x full join b_rows_once y on x.{key} = y.{key}
    """)
    return connection, key


def _verdicts(layout: Layout) -> pa.Table:
    """Every row's identity and its verdict: `kept`, `pending`, or what turned it away."""
    if not read_records(layout):
        return _VERDICTS.empty_table()
    found = connect(layout).sql("""
        select row_id, track_id, title, uri, case when verdict.status in ('kept', 'pending') then verdict.status
          else concat(verdict.status, ' ', verdict.stage, '.', verdict.reason) end as verdict
        from (select * from tracks union all by name select * from quarantine)
    """)
    return found.to_arrow_table()


def _count(connection: duckdb.DuckDBPyConnection, where: str) -> int:
    return int((connection.execute(f"select count(*) from pairs where {where}").fetchone() or (0,))[0])


def _moved(connection: duckdb.DuckDBPyConnection) -> list[Moved]:
    found = connection.execute("select a, b, count(*) from pairs where a != b group by 1, 2 order by 3 desc, 1, 2")
    return [Moved(a=a, b=b, rows=rows) for a, b, rows in found.fetchall()]


def _examples(connection: duckdb.DuckDBPyConnection, where: str) -> list[Row]:
    found = connection.execute(f"""
        select row_id, title, uri, a, b from pairs where {where} order by title, uri, row_id limit {_NAMED}
    """)
    return [Row(row_id=r, title=title, uri=uri, a=a, b=b) for r, title, uri, a, b in found.fetchall()]
