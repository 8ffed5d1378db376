"""Queries on the quarantine: rejected rows grouped by stage and reason, one row in full, and failed rows to retry."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa
from pydantic import BaseModel

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.stats import connect
from pipeline.errors import DataProblem, UsageProblem
from schemas.dataset import Layout

_STATES = pa.schema(
    [
        ("row_id", pa.string()),
        ("first_seen", pa.timestamp("us", "UTC")),
        ("last_seen", pa.timestamp("us", "UTC")),
        ("tries", pa.int64()),
    ]
)
_MIN_PREFIX = 6  # characters of an abbreviated id


class Group(BaseModel):
    """Rows that one stage rejected for one reason.

    Attributes:
        status: `filtered`, `failed` or `pending`.
        stage: the stage that rejected them.
        reason: threshold or error class.
        rows: number of rows.
        hours: hours of audio of these rows.
        first_seen: when the first of them was rejected; None in datasets written before this was recorded.
        last_seen: when the last of them was processed; None as `first_seen`.
        tries: maximum number of times one of them has been processed.
        message: message of one of them.
    """

    status: str
    stage: str
    reason: str
    rows: int
    hours: float
    first_seen: datetime | None
    last_seen: datetime | None
    tries: int
    message: str | None


def groups(layout: Layout, **chosen: str | None) -> list[Group]:
    """Rejected rows grouped by status, stage and reason, the largest group first.

    Args:
        layout: the dataset.
        chosen: `status`, `stage` and `reason` to select; None for all.

    Raises:
        NoDataset: the folder is not a dataset.
    """
    connection = _connect(layout)
    there = {name for name, *_ in connection.execute("describe quarantine").fetchall()}
    if "verdict" not in there:
        return []
    hours = "coalesce(sum(audio.duration_s), 0) / 3600" if "audio" in there else "0"
    condition, values = _condition(chosen)
    found = connection.execute(
        f"""
        select verdict.status, coalesce(verdict.stage, ''), coalesce(verdict.reason, ''), count(*), {hours},
          min(first_seen), max(last_seen), max(coalesce(tries, 1)), any_value(verdict.message)
        from quarantine left join states using (row_id) where {condition} group by 1, 2, 3 order by 4 desc, 1, 2, 3
        """,
        values,
    ).fetchall()
    return [Group.model_validate(dict(zip(Group.model_fields, row, strict=True))) for row in found]


def find_row(layout: Layout, wanted: str) -> dict[str, Any]:
    """All columns of a rejected row, with `first_seen`, `last_seen` and `tries`.

    Args:
        layout: the dataset.
        wanted: row id or track id, or a unique prefix of one with at least 6 characters.

    Raises:
        NoDataset: the folder is not a dataset.
        DataProblem: no row of the quarantine matches, or several do.
    """
    connection = _connect(layout)
    relation = connection.sql(
        "select * from quarantine left join states using (row_id) "
        "where starts_with(row_id, ?) or starts_with(coalesce(track_id, ''), ?) limit 3",
        params=[wanted, wanted],
    )
    found: list[dict[str, Any]] = relation.to_arrow_table().to_pylist()  # type: ignore[union-attr]
    exact = [row for row in found if wanted in (row["row_id"], row["track_id"])]
    rows = exact or (found if len(wanted) >= _MIN_PREFIX else [])
    if len(rows) != 1:
        found_rows = "several rows" if rows else "no row"
        raise DataProblem(f"{layout.url}: {found_rows} in the quarantine with an id that starts with {wanted!r}")
    return rows[0]


def rows_to_retry(layout: Layout, wanted: str | None, stage: str | None, reason: str | None) -> frozenset[str]:
    """Ids of the failed rows to retry.

    Args:
        layout: the dataset.
        wanted: as for `find_row`, for a single row.
        stage: only rows that failed in this stage.
        reason: only rows that failed with this error class.

    Raises:
        NoDataset: the folder is not a dataset.
        DataProblem: no failed row matches.
        UsageProblem: the row `wanted` did not fail, so that a retry would change nothing.
    """
    if wanted:
        row = find_row(layout, wanted)
        if row["verdict"]["status"] != "failed":
            verdict = row["verdict"]
            raise UsageProblem(
                f"row {row['row_id']} did not fail; it is {verdict['status']} by {verdict['stage']}."
                f"{verdict['reason']}; see what other thresholds would do: songmill whatif {layout.url} --set ..."
            )
        return frozenset([row["row_id"]])
    condition, values = _condition({"status": "failed", "stage": stage, "reason": reason})
    found = _connect(layout).execute(f"select row_id from quarantine where {condition}", values).fetchall()
    if not found:
        raise DataProblem(f"{layout.url}: no row failed{_described(stage, reason)}; songmill quarantine lists them")
    return frozenset(row_id for (row_id,) in found)


def _connect(layout: Layout) -> duckdb.DuckDBPyConnection:
    layout.require()
    connection = connect(layout)
    states = [
        {"row_id": row_id, "first_seen": row.first_seen, "last_seen": commit.committed_at, "tries": row.tries}
        for commit in Ledger(layout).read().commits.values()
        for row_id, row in commit.rows.items()
        if row.status != "kept"
    ]
    connection.register("states", pa.Table.from_pylist(states, _STATES))
    return connection


def _condition(chosen: Mapping[str, str | None]) -> tuple[str, list[str]]:
    given = {name: value for name, value in chosen.items() if value is not None}
    return " and ".join(["true", *(f"verdict.{name} = ?" for name in given)]), [*given.values()]


def _described(stage: str | None, reason: str | None) -> str:
    return (f" at stage {stage!r}" if stage else "") + (f" with {reason!r}" if reason else "")
