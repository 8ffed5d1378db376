"""Statistics of a dataset, computed with DuckDB from its shards, quarantine and commit records."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import duckdb
from pydantic import BaseModel

from pipeline.dataset.duckdb_connection import new_connection
from pipeline.dataset.histogram import Bins, count_bins
from pipeline.dataset.marks import read_marks
from pipeline.dataset.stage_times import Throughput, stage_times
from schemas.commits import committed_files, read_records
from schemas.dataset import Layout, folder_of


class VerdictCount(BaseModel):
    """Number of rows that one stage rejected for one reason, and their hours of audio."""

    status: str
    stage: str
    reason: str
    rows: int
    hours: float


class Distribution(BaseModel):
    """Distribution of one numeric field over the kept rows.

    Attributes:
        column: name of the field, such as `quality.loudness_lufs`.
        count: number of rows that have a finite value.
        edges: bin edges [bins + 1]. Bins have equal width between the 1st and the 99th percentile; the first and the
            last one extend to the minimum and the maximum.
        counts: rows per bin [bins].
    """

    column: str
    count: int
    minimum: float | None
    p25: float | None
    median: float | None
    p75: float | None
    maximum: float | None
    edges: list[float] = []
    counts: list[int] = []


class Stats(BaseModel):
    """Summary of a dataset.

    Attributes:
        rows: status -> number of rows: kept, filtered, failed, pending (if there are any) and total.
        hours: status -> hours of audio.
        shards: number of shards.
        verdicts: rejected rows by stage and reason, without pending rows.
        distributions: numeric fields of the kept rows.
        counts: column -> value -> number of kept rows.
        hours_of: column -> value -> hours of audio of kept rows.
        vocal_share: share (0 to 1) of hours with vocals, over kept rows where this is known; None if it is known of
            none.
        nulls: column -> number of kept rows in which it is null.
        marks: `keep` and `drop` -> number of rows with that mark.
        sizes: folder -> total bytes of its committed files.
        stages: wall times of the stages.
    """

    rows: dict[str, int]
    hours: dict[str, float]
    shards: int
    verdicts: list[VerdictCount]
    distributions: list[Distribution]
    counts: dict[str, dict[str, int]]
    hours_of: dict[str, dict[str, float]] = {}
    vocal_share: float | None = None
    nulls: dict[str, int] = {}
    marks: dict[str, int] = {}
    sizes: dict[str, int] = {}
    stages: list[Throughput]


# Numeric fields to summarize if the dataset has them: name -> SQL expression over the view `tracks`.
_DURATION = "audio.duration_s"
_FIGURES = {
    "audio.duration_s": _DURATION,
    "quality.loudness_lufs": "quality.loudness_lufs",
    "quality.true_peak_dbtp": "quality.true_peak_dbtp",
    "quality.bandwidth_hz": "quality.bandwidth_hz",
    "vocals.active_ratio": "vocals.active_ratio",
    "rhythm.bpm": "rhythm.bpm",
    "rhythm.confidence": "rhythm.confidence",
    "key.strength": "key.strength",
    "transcript.avg_logprob": "transcript.avg_logprob",
    "lyrics.score": "lyrics.score",
    "lyric_tokens.ids": "len(lyric_tokens.ids)",
}
_VALUES = {
    "license": "coalesce(license, 'unknown')",
    "source": "coalesce(source, 'unknown')",
    "language": "language",  # as declared by the input; transcript.language is the recognized one
    "audio.codec": "audio.codec",
    "vocals.has_vocals": "case when vocals.has_vocals then 'vocal' when not vocals.has_vocals then 'instrumental' end",
    "transcript.language": "transcript.language",
    "key": "key.tonic || ' ' || key.mode",
    "tags.names": "tags.names[1:3]",
    "caption.source": "caption.source",
    "flags": "flags",
}
_LISTS = ("tags.names", "flags")  # list columns, whose items are counted
_WHOLE = ("license", "source", "language", "transcript.language")  # all values, not only the most common
_MOST_COMMON = 12
_BINS = 20


def connect(layout: Layout) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB connection with the views `tracks` and `quarantine`, either of which may be empty."""
    return _connect_to(layout, [*committed_files(layout)])


def collect_stats(layout: Layout) -> Stats:
    """Compute the statistics of a dataset.

    Raises:
        NoDataset: the folder is not a dataset.
    """
    layout.require()
    records = read_records(layout)
    files = [name for record in records for name in record.files]
    marks = count_marks(layout)
    if not records:
        empty: dict[str, Any] = {"hours": {}, "verdicts": [], "distributions": [], "counts": {}, "stages": []}
        return Stats(rows=_totals({}), shards=0, marks=marks, **empty)
    connection = _connect_to(layout, files)
    nullable = _digest(connection)
    rows, hours = _by_status(connection)
    counts, hours_of = _values(connection)
    return Stats(
        rows=_totals(rows),
        hours=hours,
        shards=sum(name.startswith("shards/") for name in files),
        verdicts=_verdicts(connection),
        distributions=_distributions(connection, rows.get("kept", 0)),
        counts=counts,
        hours_of=hours_of,
        vocal_share=_vocal_share(hours_of.get("vocals.has_vocals", {})),
        nulls=_nulls(connection, nullable),
        marks=marks,
        sizes=_sizes(layout, files),
        stages=stage_times(layout, records),
    )


def count_marks(layout: Layout) -> dict[str, int]:
    """Kind of mark -> number of rows with it."""
    return dict(Counter(mark.mark for mark in read_marks(layout).values()))


def _connect_to(layout: Layout, files: Sequence[str]) -> duckdb.DuckDBPyConnection:
    connection = new_connection()
    connection.execute("set parquet_metadata_cache = true")  # or every statement reads all footers again
    layout.store.let_read(connection)
    for view, folder in (("tracks", layout.shards), ("quarantine", layout.quarantine)):
        mine = sorted(name for name in files if folder_of(name) == folder)
        # An empty view needs a schema too; shards and quarantine have the same one.
        others = [name for name in files if folder_of(name) in (layout.shards, layout.quarantine)]
        addresses = [layout.store.address(name) for name in mine or others[:1]]
        _create_view(connection, view, addresses, empty=not mine)
    return connection


def _create_view(connection: duckdb.DuckDBPyConnection, view: str, files: Sequence[str], *, empty: bool) -> None:
    if not files:
        connection.execute(f"create view {view} as select null as row_id where false")
        return
    where = " where false" if empty else ""
    source = f"read_parquet({_listed(files)}, union_by_name=true)"
    connection.execute(f"create view {view} as select * from {source}{where}")


def _listed(texts: Iterable[str]) -> str:
    """Texts as an SQL list literal."""
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


def _digest(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Read the files once into tables `kept` and `rejected` with all values needed below.

    Returns:
        Names of the stage columns, which may be null.
    """
    connection.execute("set preserve_insertion_order = false")
    types = dict(connection.execute("select column_name, column_type from (describe tracks)").fetchall())
    nullable = [name for name, type in types.items() if type.startswith("STRUCT(") and "model VARCHAR" in type]
    hours = f"coalesce({_DURATION}, 0) / 3600 as hours" if "audio" in types else "0.0 as hours"
    there = {column: e for column, e in {**_FIGURES, **_VALUES}.items() if column.partition(".")[0] in types}
    columns = [
        *(f'{_finite(e) if column in _FIGURES else e} as "{column}"' for column, e in there.items()),
        *(f'"{name}".model is null as "null {name}"' for name in nullable),
    ]
    connection.execute(f"create table kept as select {', '.join([hours, *columns])} from tracks")
    verdict = "verdict.status as status, verdict.stage as stage, verdict.reason as reason"
    connection.execute(f"create table rejected as select {verdict}, {hours} from quarantine")
    return nullable


def _finite(expression: str) -> str:
    return f"case when isfinite(({expression})::double) then ({expression})::double end"


def _by_status(connection: duckdb.DuckDBPyConnection) -> tuple[dict[str, int], dict[str, float]]:
    found = connection.execute(
        "select status, count(*), sum(hours) "
        "from (select 'kept' as status, hours from kept union all select status, hours from rejected) group by 1"
    ).fetchall()
    return {status: rows for status, rows, _ in found}, {status: hours for status, _, hours in found}


def _verdicts(connection: duckdb.DuckDBPyConnection) -> list[VerdictCount]:
    found = connection.execute(
        "select status, coalesce(stage, ''), coalesce(reason, ''), count(*), sum(hours) from rejected "
        "where status != 'pending' group by 1, 2, 3 order by 4 desc, 1, 2, 3"
    ).fetchall()
    return [
        VerdictCount(status=status, stage=stage, reason=reason, rows=rows, hours=hours)
        for status, stage, reason, rows, hours in found
    ]


def _distributions(connection: duckdb.DuckDBPyConnection, kept: int) -> list[Distribution]:
    columns = [name for name in _columns(connection) if name in _FIGURES]
    if not columns or not kept:
        return [_distribution(column, (0, None, None, None), None, []) for column in columns]
    expressions = ", ".join(
        f'count("{c}"), min("{c}"), quantile_cont("{c}", [0.01, 0.25, 0.5, 0.75, 0.99]), max("{c}")' for c in columns
    )
    found = connection.execute(f"select {expressions} from kept").fetchone() or ()
    spreads = {c: found[4 * i : 4 * i + 4] for i, c in enumerate(columns)}
    inner = {c: points for c, (_, _, points, _) in spreads.items() if points}
    bins = {c: Bins.between(f'"{c}"', points[0], points[-1], _BINS) for c, points in inner.items()}
    counts = dict(zip(bins, count_bins(connection, "kept", [*bins.values()]), strict=True))
    return [_distribution(c, spread, bins.get(c), counts.get(c, [])) for c, spread in spreads.items()]


def _distribution(column: str, spread: tuple[Any, ...], bins: Bins | None, counts: list[int]) -> Distribution:
    """The distribution of a column with `spread`: its count, minimum, quantiles and maximum."""
    count, minimum, points, maximum = spread
    _, p25, median, p75, _ = points or [None] * 5
    found = {"count": count, "minimum": minimum, "p25": p25, "median": median, "p75": p75, "maximum": maximum}
    return Distribution(column=column, **found, edges=[minimum, *bins.borders, maximum] if bins else [], counts=counts)


def _values(
    connection: duckdb.DuckDBPyConnection,
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Column -> value -> number of kept rows, and the same for their hours; the most common value first."""
    counts, hours_of = {}, {}
    for column in (name for name in _columns(connection) if name in _VALUES):
        value = f'unnest("{column}")' if column in _LISTS else f'"{column}"'
        limit = "" if column in _WHOLE else f" limit {_MOST_COMMON}"
        found = connection.execute(
            f"select v, count(*), sum(hours) from (select {value} as v, hours from kept) where v is not null "
            f"group by 1 order by 2 desc, 1{limit}"
        ).fetchall()
        counts[column] = {value: rows for value, rows, _ in found}
        hours_of[column] = {value: hours for value, _, hours in found}
    return counts, hours_of


def _vocal_share(hours: dict[str, float]) -> float | None:
    known = sum(hours.values())
    return hours.get("vocal", 0.0) / known if known else None


def _nulls(connection: duckdb.DuckDBPyConnection, columns: list[str]) -> dict[str, int]:
    if not columns:
        return {}
    expressions = ", ".join(f'count(*) filter ("null {column}")' for column in columns)
    return dict(zip(columns, connection.execute(f"select {expressions} from kept").fetchone() or (), strict=True))


def _sizes(layout: Layout, files: Iterable[str]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for name in files:
        sizes[folder_of(name)] += layout.store.size(name) if layout.store.exists(name) else 0
    return dict(sorted(sizes.items()))


def _columns(connection: duckdb.DuckDBPyConnection) -> list[str]:
    return [row[0] for row in connection.execute("describe kept").fetchall()]


def _totals(rows: dict[str, int]) -> dict[str, int]:
    statuses = {status: rows.get(status, 0) for status in ("kept", "filtered", "failed")}
    waiting = {"pending": rows["pending"]} if rows.get("pending") else {}
    return {**statuses, **waiting, "total": sum(rows.values())}
