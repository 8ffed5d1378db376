"""`songmill whatif`: which rows and hours other thresholds would keep, and the rows nearest to each threshold."""

from collections.abc import Iterable
from typing import Any

import duckdb
from pydantic import BaseModel

from pipeline.edit.rejudge import rejudge
from pipeline.planning.gates import Gate
from schemas.dataset import Layout

_MOST_COMMON = 12
_BY = {
    "language": "coalesce(transcript.language, language, 'unknown')",
    "license": "coalesce(license, 'unknown')",
    "tag": "unnest(coalesce(tags.names[1:3], ['none']))",
}
_NEEDS = {"language": ("transcript",), "license": (), "tag": ("tags",)}


class Amount(BaseModel):
    """Rows and their hours of audio."""

    rows: int = 0
    hours: float = 0.0


class Balance(BaseModel):
    """Hours kept with the current thresholds (`now`) and with the other ones (`then`)."""

    now: float
    then: float


class Near(BaseModel):
    """A row near a threshold.

    Attributes:
        value: its value of the threshold's field.
        rejected: whether the new threshold rejects it.
    """

    row_id: str
    title: str | None
    uri: str
    value: float
    rejected: bool


class WhatIf(BaseModel):
    """The effect of other thresholds.

    Attributes:
        changes: threshold -> current and new bound; None for no threshold.
        kept_now: rows that are kept with the current thresholds.
        kept_then: rows that would be kept with the new ones, without pending rows.
        newly_rejected: threshold -> rows that are kept now and that it would reject.
        newly_kept: rejected rows that would be kept and have all their columns.
        pending: rejected rows that would pass the thresholds, but on which later stages have never run.
        by: `language`, `license` and `tag` -> value -> hours kept; a song with three tags counts for each of them.
        nearest: changed threshold -> the rows nearest to it, on both sides.
    """

    changes: dict[str, tuple[float | None, float | None]]
    kept_now: Amount
    kept_then: Amount
    newly_rejected: dict[str, Amount]
    newly_kept: Amount
    pending: Amount
    by: dict[str, dict[str, Balance]]
    nearest: dict[str, list[Near]]


def what_if(layout: Layout, overrides: Iterable[str], nearest: int = 5) -> WhatIf:
    """Compute the effect of other thresholds on a dataset, without changing it.

    Args:
        layout: the dataset.
        overrides: `column.min_field=bound` or `column.max_field=bound`; `null` for no threshold.
        nearest: number of rows to list on each side of every changed threshold.

    Raises:
        NoDataset: the folder is not a dataset.
        DataProblem: the dataset is empty.
        UsageProblem: an override is not a threshold on a column of the dataset.
    """
    judged = rejudge(layout, overrides)
    connection = judged.connection
    return WhatIf(
        changes={
            f"{column}.{name}": (judged.plan.gates.get(column, {}).get(name), judged.gates.get(column, {}).get(name))
            for column, name in judged.changed
        },
        kept_now=_amount(connection, "now = 'kept'"),
        kept_then=_amount(connection, "after = 'kept'"),
        newly_rejected=_amounts(connection, "now = 'kept' and after = 'filtered'"),
        newly_kept=_amount(connection, "now != 'kept' and after = 'kept'"),
        pending=_amount(connection, "after = 'pending'"),
        by={name: found for name in _BY if (found := _balances(connection, name))},
        nearest={
            f"{gate.column}.{gate.reason}": _nearest(connection, gate, nearest)
            for gate in judged.judging
            if (gate.column, gate.reason) in judged.changed
        },
    )


def _amount(connection: duckdb.DuckDBPyConnection, where: str) -> Amount:
    found = connection.execute(f"select count(*), coalesce(sum(hours), 0) from verdicts where {where}").fetchone()
    rows, hours = found or (0, 0.0)
    return Amount(rows=rows, hours=hours)


def _amounts(connection: duckdb.DuckDBPyConnection, where: str) -> dict[str, Amount]:
    found = connection.execute(
        f"select reason, count(*), sum(hours) from verdicts where {where} group by 1 order by 3 desc, 1"
    ).fetchall()
    return {reason: Amount(rows=rows, hours=hours) for reason, rows, hours in found}


def _balances(connection: duckdb.DuckDBPyConnection, name: str) -> dict[str, Balance]:
    there = {column for column, *_ in connection.execute("describe judged").fetchall()}
    if not there.issuperset(_NEEDS[name]):
        return {}
    found: list[tuple[Any, ...]] = connection.execute(f"""
        with labelled as (select {_BY[name]} as value, hours, now, after from judged)
        select value, sum(hours) filter (now = 'kept'), sum(hours) filter (after = 'kept') from labelled
        where now = 'kept' or after = 'kept' group by 1 order by 2 desc nulls last, 1 limit {_MOST_COMMON}
    """).fetchall()
    return {value: Balance(now=now or 0.0, then=then or 0.0) for value, now, then in found}


def _nearest(connection: duckdb.DuckDBPyConnection, gate: Gate, count: int) -> list[Near]:
    field = f'"{gate.column}"."{gate.field}"'
    found = connection.execute(f"""
        with sided as (
          select row_id, title, uri, {field} as value, {gate.sql} as rejected,
            abs({field} - '{gate.bound!r}'::double) as distance from judged
          where {field} is not null and now != 'failed'
        )
        select row_id, title, uri, value, rejected from sided
        qualify row_number() over (partition by rejected order by distance, row_id) <= {int(count)}
        order by value, row_id
    """).fetchall()
    return [Near(row_id=r, title=t, uri=u, value=v, rejected=x) for r, t, u, v, x in found]
