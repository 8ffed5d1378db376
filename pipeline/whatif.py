"""What other thresholds would keep: every row judged again from the figures that shards and quarantine hold.

Nothing is decoded and no model runs. A row that failed, or has no allowed license, stays out, and a copy stays a copy:
a copy of a song that other thresholds reject would have to be looked at anew by `songmill curate --update`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import duckdb
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline.errors import DataProblem, UsageProblem
from pipeline.gates import Gate, GateError, build_gates
from pipeline.ledger import Ledger
from pipeline.plan import Plan
from pipeline.stats import connect
from schemas.config import Thresholds
from schemas.dataset import FEATURES, Layout

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
    """Hours kept by the dataset's own thresholds and by the other ones."""

    now: float
    then: float


class Near(BaseModel):
    """A row next to a threshold.

    Attributes:
        rejected: on which side of the new threshold it lies.
    """

    row_id: str
    title: str | None
    uri: str
    value: float
    rejected: bool


class WhatIf(BaseModel):
    """What other thresholds would do.

    Attributes:
        changes: threshold -> its bound now and then; None where there is none.
        kept_now, kept_then: rows that are kept. Pending rows are not among the latter.
        newly_rejected: rows that would go, by the threshold that rejects them.
        newly_kept: rows that would come back with all their columns.
        pending: rows that would come back, but whose later stages have never run.
        by: language, license and tag -> value -> hours kept; a song with three tags counts for each.
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
    """Judge every row of a dataset by other thresholds.

    Args:
        layout: the dataset.
        overrides: `column.min_field=bound` or `column.max_field=bound`; `null` for no threshold.
        nearest: rows to name on each side of every changed threshold.

    Raises:
        DataProblem: the folder holds no dataset, or an empty one.
        UsageProblem: an override is no threshold on a column of the dataset.
    """
    if not layout.plan.exists():
        raise DataProblem(f"{layout.root} is no songmill dataset (it has no _songmill/plan.json)")
    plan = Plan.model_validate_json(layout.plan.read_bytes())
    changed = _parsed(overrides)
    wanted = _merged(plan.gates, changed)
    gates = _gates(layout, plan, wanted)
    connection = connect(layout)
    _judge(connection, plan, gates)
    return WhatIf(
        changes={
            f"{column}.{name}": (plan.gates.get(column, {}).get(name), wanted.get(column, {}).get(name))
            for column, name in changed
        },
        kept_now=_amount(connection, "now = 'kept'"),
        kept_then=_amount(connection, "after = 'kept'"),
        newly_rejected=_amounts(connection, "now = 'kept' and after = 'filtered'"),
        newly_kept=_amount(connection, "now != 'kept' and after = 'kept'"),
        pending=_amount(connection, "after = 'pending'"),
        by={name: found for name in _BY if (found := _balances(connection, name))},
        nearest={
            f"{gate.column}.{gate.reason}": _nearest(connection, gate, nearest)
            for gate in gates
            if (gate.column, gate.reason) in changed
        },
    )


def _parsed(overrides: Iterable[str]) -> dict[tuple[str, str], float | None]:
    changed: dict[tuple[str, str], float | None] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        column, dot, name = key.strip().partition(".")
        try:
            bound = None if text.strip() == "null" else float(text)
        except ValueError:
            bound = math.nan
        if not (dot and equals) or (bound is not None and not math.isfinite(bound)):
            raise UsageProblem(f"--set {override}: a threshold is written column.min_field=NUMBER (null for none)")
        changed[column, name] = bound
    if not changed:
        raise UsageProblem("say what to change: --set quality.min_bandwidth_hz=15000")
    return changed


def _merged(gates: Mapping[str, Thresholds], changed: Mapping[tuple[str, str], float | None]) -> dict[str, Thresholds]:
    merged = {column: dict(bounds) for column, bounds in gates.items()}
    for (column, name), bound in changed.items():
        merged.setdefault(column, {}).pop(name, None)
        if bound is not None:
            merged[column][name] = bound
    return merged


def _gates(layout: Layout, plan: Plan, wanted: Mapping[str, Thresholds]) -> list[Gate]:
    """The gates in the order in which they judge."""
    file = next((name for name in Ledger(layout).read().files if not name.startswith("features/")), None)
    if file is None:
        raise DataProblem(f"{layout.root} holds no rows yet")
    types = {field.name: field.type for field in pq.read_schema(layout.root / file)}
    if unknown := sorted(wanted.keys() - types.keys()):
        raise UsageProblem(f"the dataset has no column {', '.join(unknown)}; it has {', '.join(plan.columns)}")
    try:
        gates = build_gates(wanted, types)
    except GateError as error:
        raise UsageProblem(str(error)) from error
    order = list(plan.columns)
    return sorted(gates, key=lambda gate: order.index(gate.column))


def _judge(connection: duckdb.DuckDBPyConnection, plan: Plan, gates: Sequence[Gate]) -> None:
    """Create the table `judged`: every row with its status `now` and `after`, and the `reason` of the latter."""
    connection.execute("create view every as select * from tracks union all by name select * from quarantine")
    there = {name for name, *_ in connection.execute("describe every").fetchall()}
    columns = [name for name in plan.columns if name in there and name not in FEATURES]
    complete = " and ".join(f'"{name}" is not null' for name in columns) or "true"
    rejections = "".join(f" when {_rejects(gate)} then '{gate.column}.{gate.reason}'" for gate in gates)
    reason = f"case{rejections} end" if rejections else "null"
    duration = "coalesce(audio.duration_s, 0) / 3600" if "audio" in there else "0"
    connection.execute(f"""
        create table judged as
        with reasons as (select *, verdict.status as now, {reason} as why from every)
        select * exclude (why), {duration} as hours,
          case when now = 'failed' or verdict.stage in ('dedup', 'license') then now
               when why is not null then 'filtered'
               when now = 'kept' or ({complete}) then 'kept'
               else 'pending' end as after,
          case when now = 'failed' or verdict.stage in ('dedup', 'license') then null else why end as reason
        from reasons
    """)


def _rejects(gate: Gate) -> str:
    relation = "<" if gate.side == "min" else ">"
    return f'coalesce("{gate.column}"."{gate.field}" {relation} {gate.bound!r}, false)'


def _amount(connection: duckdb.DuckDBPyConnection, where: str) -> Amount:
    found = connection.execute(f"select count(*), coalesce(sum(hours), 0) from judged where {where}").fetchone()
    rows, hours = found or (0, 0.0)
    return Amount(rows=rows, hours=hours)


def _amounts(connection: duckdb.DuckDBPyConnection, where: str) -> dict[str, Amount]:
    found = connection.execute(
        f"select reason, count(*), sum(hours) from judged where {where} group by 1 order by 3 desc, 1"
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
          select row_id, title, uri, {field} as value, {_rejects(gate)} as rejected from judged
          where {field} is not null and now != 'failed'
        )
        select * from sided
        qualify row_number() over (partition by rejected order by abs(value - {gate.bound!r}), row_id) <= {int(count)}
        order by value, row_id
    """).fetchall()
    return [Near(row_id=r, title=t, uri=u, value=v, rejected=x) for r, t, u, v, x in found]
