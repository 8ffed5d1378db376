"""A seeded sample of rows that shows every verdict: equal shares of each status and, within it, of each reason."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import duckdb

STATUSES = ("filtered", "failed", "kept", "pending")  # in the order of a page: what was turned away comes first

_EVERY = "(select * from tracks union all by name select * from quarantine)"


def sample(connection: duckdb.DuckDBPyConnection, rows: int, seed: int) -> list[str]:
    """Ids of rows, in the order in which a page lists them; the same seed gives the same rows.

    Args:
        connection: with the views `tracks` and `quarantine`.
        rows: size of the sample, at most.
        seed: seed of the sample.
    """
    drawn: defaultdict[str, defaultdict[tuple[str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for row_id, status, stage, reason in connection.execute(
        f"""
        select row_id, verdict.status, coalesce(verdict.stage, ''), coalesce(verdict.reason, '') from {_EVERY}
        qualify row_number() over (
            partition by verdict.status, verdict.stage, verdict.reason order by md5(row_id || ?), row_id
        ) <= ?
        order by 3, 4, md5(row_id || ?), row_id
        """,
        [f":{seed}", rows, f":{seed}"],
    ).fetchall():
        drawn[status][stage, reason].append(row_id)
    statuses = [status for status in STATUSES if status in drawn]
    shares = _shares([sum(map(len, drawn[status].values())) for status in statuses], rows)
    chosen = []
    for status, share in zip(statuses, shares, strict=True):
        reasons = list(drawn[status].values())
        for ids, count in zip(reasons, _shares(list(map(len, reasons)), share), strict=True):
            chosen += ids[:count]
    return chosen


def fetch(connection: duckdb.DuckDBPyConnection, row_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Whole rows by id, in that order; unknown ids are left out."""
    query = f"select * from {_EVERY} where row_id in (select unnest(?::varchar[]))"
    found = connection.sql(query, params=[list(row_ids)]).to_arrow_table()  # type: ignore[union-attr]
    by_id = {row["row_id"]: row for row in found.to_pylist()}
    return [by_id[row_id] for row_id in row_ids if row_id in by_id]


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """A total divided among groups as equally as their sizes allow."""
    shares = [0] * len(sizes)
    left = min(total, sum(sizes))
    while left:
        open_groups = [i for i, size in enumerate(sizes) if shares[i] < size]
        each = max(left // len(open_groups), 1)
        for i in open_groups[:left]:
            given = min(each, sizes[i] - shares[i], left)
            shares[i] += given
            left -= given
    return shares
