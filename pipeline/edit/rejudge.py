"""Every row of a dataset judged again by other thresholds, from the figures that shards and quarantine hold.

Nothing is decoded and no model runs. What people, licenses, duplicates and failures decided stands: a row that failed
or has no allowed license stays out, a copy stays a copy, and a row that is marked to be kept stays in. A copy of a song
that other thresholds reject is looked at anew by the next `songmill curate`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import read_marks
from pipeline.dataset.stats import connect
from pipeline.errors import DataProblem, UsageProblem
from pipeline.planning.gates import Gate, GateError, build_gates, first_rejecting_sql, in_judging_order
from pipeline.planning.plan import Plan
from schemas.config import Thresholds
from schemas.dataset import FEATURES, Layout

# Stages of a verdict that no threshold of a column gave.
STANDING = ("dedup", "license", "mark", "forget")


@dataclass(frozen=True)
class Rejudged:
    """All rows under other thresholds.

    Attributes:
        plan: of the dataset as it is.
        changed: column and threshold -> its new bound; None for none.
        gates: thresholds as they would be.
        judging: gates in the order in which they judge.
        connection: DuckDB with the view `judged`: every row's columns, `hours`, its status `now` and `after`, which may
            be `pending`: it would come back, but stages have never run on it; and the `reason` why it is filtered.
    """

    plan: Plan
    changed: Mapping[tuple[str, str], float | None]
    gates: dict[str, Thresholds]
    judging: Sequence[Gate]
    connection: duckdb.DuckDBPyConnection


def rejudge(layout: Layout, overrides: Iterable[str]) -> Rejudged:
    """Judge every row of a dataset by other thresholds.

    Args:
        layout: the dataset.
        overrides: `column.min_field=bound` or `column.max_field=bound`; `null` for no threshold.

    Raises:
        NoDataset: the folder holds no dataset.
        DataProblem: it is empty.
        UsageProblem: an override is no threshold on a column of the dataset.
    """
    layout.require()
    plan = Plan.model_validate_json(layout.plan.read_bytes())
    changed = _parsed(overrides)
    wanted = _merged(plan.gates, changed)
    gates = _ordered_gates(layout, plan, wanted)
    connection = connect(layout)
    connection.register("kept_by_hand", _kept_by_hand(layout))
    _judge(connection, plan, gates)
    return Rejudged(plan, changed, wanted, gates, connection)


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


def _ordered_gates(layout: Layout, plan: Plan, wanted: Mapping[str, Thresholds]) -> tuple[Gate, ...]:
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
    return in_judging_order(gates, plan.columns)


def _kept_by_hand(layout: Layout) -> pa.Table:
    kept = [row_id for row_id, mark in read_marks(layout).items() if mark.mark == "keep"]
    return pa.table({"row_id": pa.array(kept, pa.string())})


def _judge(connection: duckdb.DuckDBPyConnection, plan: Plan, gates: Sequence[Gate]) -> None:
    connection.execute("create view every as select * from tracks union all by name select * from quarantine")
    there = {name for name, *_ in connection.execute("describe every").fetchall()}
    duration = "coalesce(audio.duration_s, 0) / 3600" if "audio" in there else "0"
    connection.execute(f"""
        create table verdicts as
        with reasons as (
          select row_id, {duration} as hours, verdict.status as now, {_complete(plan, there)} as complete,
            verdict.status = 'failed' or coalesce(verdict.stage in {STANDING}, false) as stands,
            case when row_id not in (select row_id from kept_by_hand) then {first_rejecting_sql(gates)} end
              as rejection
          from every
        )
        select row_id, hours, now,
          case when stands then now when rejection is not null then 'filtered'
               when now = 'kept' or complete then 'kept' else 'pending' end as after,
          case when not stands then rejection end as reason
        from reasons
    """)
    connection.execute("create view judged as select * from every join verdicts using (row_id)")


def _complete(plan: Plan, there: set[str]) -> str:
    """SQL: whether a row has every column of the plan. Features lie beside kept rows only."""
    if set(plan.columns) & set(FEATURES):
        return "verdict.status = 'kept'"
    return " and ".join(f'"{name}" is not null' for name in plan.columns if name in there) or "true"
