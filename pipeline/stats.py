"""Figures of a dataset, read from its shards, quarantine and commits through DuckDB."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline.errors import DataProblem
from pipeline.ledger import Ledger, StageTime
from schemas.dataset import Layout


class VerdictCount(BaseModel):
    """How many rows one stage turned away for one reason."""

    status: str
    stage: str
    reason: str
    rows: int
    hours: float


class Distribution(BaseModel):
    """Spread of one figure over the kept rows."""

    column: str
    count: int
    minimum: float | None
    p25: float | None
    median: float | None
    p75: float | None
    maximum: float | None


class Throughput(StageTime):
    """Wall time of a stage, and how fast it went."""

    stage: str

    @property
    def speed(self) -> float:
        """Seconds of audio a second of one worker."""
        return self.audio_s / self.seconds if self.seconds else 0.0


class Stats(BaseModel):
    """One screen of a dataset."""

    rows: dict[str, int]  # kept, filtered, failed, total
    hours: dict[str, float]
    shards: int
    verdicts: list[VerdictCount]
    distributions: list[Distribution]
    counts: dict[str, dict[str, int]]  # column -> value -> kept rows
    stages: list[Throughput]


# Figures worth a line, where the dataset has them: column -> expression over the view `tracks`.
_FIGURES = {
    "audio.duration_s": "audio.duration_s",
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
    "audio.codec": "audio.codec",
    "vocals.has_vocals": "case when vocals.has_vocals then 'vocal' else 'instrumental' end",
    "transcript.language": "transcript.language",
    "key": "key.tonic || ' ' || key.mode",
    "tags.names": "unnest(tags.names[1:3])",
    "caption.source": "caption.source",
    "flags": "unnest(flags)",
}
_MOST_COMMON = 12


def connect(layout: Layout) -> duckdb.DuckDBPyConnection:
    """DuckDB in memory with the views `tracks` and `quarantine`, either of which may be empty."""
    connection = duckdb.connect()
    committed = [layout.root / name for name in Ledger(layout).read().files]
    for view, folder in (("tracks", layout.shards), ("quarantine", layout.quarantine)):
        files = sorted(path for path in committed if path.parent == folder)
        # Of an empty view the schema is still wanted; shards and quarantine share theirs.
        others = [path for path in committed if path.parent in (layout.shards, layout.quarantine)]
        _create_view(connection, view, files or others[:1], empty=not files)
    return connection


def collect_stats(layout: Layout) -> Stats:
    """Read a dataset's figures.

    Raises:
        DataProblem: the folder holds no dataset.
    """
    if not layout.plan.exists():
        raise DataProblem(f"{layout.root} is no songmill dataset (it has no _songmill/plan.json)")
    ledger = Ledger(layout).read()
    if not ledger.commits:
        return Stats(rows=_totals({}), hours={}, shards=0, verdicts=[], distributions=[], counts={}, stages=[])
    connection = connect(layout)
    rows, hours = _by_status(connection)
    return Stats(
        rows=_totals(rows),
        hours=hours,
        shards=sum(name.startswith("shards/") for name in ledger.files),
        verdicts=_verdicts(connection),
        distributions=_distributions(connection),
        counts=_value_counts(connection),
        stages=_stage_times(layout, ledger),
    )


def _create_view(connection: duckdb.DuckDBPyConnection, view: str, files: list[Path], *, empty: bool) -> None:
    if not files:
        connection.execute(f"create view {view} as select null as row_id where false")
        return
    where = " where false" if empty else ""
    source = f"read_parquet({_listed(files)}, union_by_name=true)"
    connection.execute(f"create view {view} as select * from {source}{where}")


def _listed(files: Iterable[Path]) -> str:
    """Paths as a list in SQL."""
    return "[" + ", ".join("'" + str(file).replace("'", "''") + "'" for file in files) + "]"


def _by_status(connection: duckdb.DuckDBPyConnection) -> tuple[dict[str, int], dict[str, float]]:
    found = connection.execute(
        f"select verdict.status, count(*), coalesce(sum({_duration(connection)}), 0) / 3600 "
        "from (select * from tracks union all by name select * from quarantine) group by 1"
    ).fetchall()
    return {status: rows for status, rows, _ in found}, {status: hours for status, _, hours in found}


def _verdicts(connection: duckdb.DuckDBPyConnection) -> list[VerdictCount]:
    found = connection.execute(
        f"select verdict.status, verdict.stage, verdict.reason, count(*), coalesce(sum({_duration(connection)}), 0) "
        "/ 3600 from quarantine group by 1, 2, 3 order by 4 desc, 1, 2, 3"
    ).fetchall()
    return [
        VerdictCount(status=status, stage=stage, reason=reason, rows=rows, hours=hours)
        for status, stage, reason, rows, hours in found
    ]


def _distributions(connection: duckdb.DuckDBPyConnection) -> list[Distribution]:
    names = _columns(connection)
    return [
        _distribution(connection, column, expression)
        for column, expression in _FIGURES.items()
        if column.partition(".")[0] in names
    ]


def _distribution(connection: duckdb.DuckDBPyConnection, column: str, expression: str) -> Distribution:
    row = connection.execute(
        f"select count(v), min(v), quantile_cont(v, [0.25, 0.5, 0.75]), max(v) "
        f"from (select ({expression})::double as v from tracks)"
    ).fetchone()
    count, minimum, quartiles, maximum = row or (0, None, None, None)
    p25, median, p75 = quartiles or (None, None, None)
    return Distribution(column=column, count=count, minimum=minimum, p25=p25, median=median, p75=p75, maximum=maximum)


def _value_counts(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, int]]:
    names = _columns(connection)
    return {
        column: dict(
            connection.execute(
                f"select v, count(*) from (select {expression} as v from tracks) where v is not null "
                f"group by 1 order by 2 desc, 1{_limit(column)}"
            ).fetchall()
        )
        for column, expression in _VALUES.items()
        if column.partition(".")[0] in names
    }


def _limit(column: str) -> str:
    """The card names every licence and language; of the rest the most common will do."""
    return "" if column in ("license", "transcript.language") else f" limit {_MOST_COMMON}"


def _stage_times(layout: Layout, ledger: Ledger) -> list[Throughput]:
    totals: defaultdict[str, StageTime] = defaultdict(StageTime)
    for commit in ledger.commits.values():
        for stage, time in commit.timings.items():
            totals[stage].rows += time.rows
            totals[stage].seconds += time.seconds
            totals[stage].audio_s += time.audio_s
    return _scan_times(layout) + [Throughput(stage=stage, **time.model_dump()) for stage, time in totals.items()]


def _scan_times(layout: Layout) -> list[Throughput]:
    """The scan's stages; its decode is listed apart from the curation pass's, which decodes again."""
    paths = sorted(layout.scan.glob("part-*.parquet"))
    if not paths:
        return []
    duration = "audio.duration_s" if "audio" in pq.read_schema(paths[0]).names else "0"
    steps = f"select unnest(timing) as step, {duration} as duration_s from read_parquet({_listed(paths)})"
    found = duckdb.execute(
        "select step.stage, count(*), sum(step.seconds), coalesce(sum(duration_s), 0) "
        f"from ({steps}) group by 1 order by 1"
    ).fetchall()
    return [
        Throughput(stage=f"scan: {stage}", rows=rows, seconds=seconds, audio_s=audio_s)
        for stage, rows, seconds, audio_s in found
    ]


def _duration(connection: duckdb.DuckDBPyConnection) -> str:
    return "audio.duration_s" if "audio" in _columns(connection) else "0"


def _columns(connection: duckdb.DuckDBPyConnection) -> set[str]:
    return {row[0] for row in connection.execute("describe tracks").fetchall()}


def _totals(rows: dict[str, int]) -> dict[str, int]:
    statuses = {status: rows.get(status, 0) for status in ("kept", "filtered", "failed")}
    return {**statuses, "total": sum(rows.values())}
