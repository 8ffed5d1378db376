"""Judge every row of a dataset again by other thresholds, from the measurements in its shards and quarantine.

Nothing is decoded and no model runs. Verdicts from marks, licenses, duplicate detection and failures do not change: a
row that failed or has no allowed license stays rejected, a duplicate stays a duplicate, and a row marked `keep` stays
kept. Duplicates of a song that the other thresholds reject are judged again by the next `songmill curate`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import read_marks
from pipeline.dataset.stats import connect
from pipeline.errors import DataProblem, UsageProblem
from pipeline.planning.gates import Gate, GateError, build_gates, first_rejecting_sql, in_judging_order
from pipeline.planning.plan import Plan
from schemas.config import Thresholds
from schemas.dataset import FEATURES, Layout
from schemas.storage.parquet import schema_of

# Values of verdict.stage that do not come from a threshold on a column; rows with these keep their verdict.
STANDING = ("dedup", "license", "mark", "forget")


@dataclass(frozen=True)
class Rejudged:
    """All rows of a dataset, judged by other thresholds.

    Attributes:
        plan: the dataset's current plan.
        changed: (column, threshold) -> new bound; None to remove the threshold.
        gates: column -> thresholds after the change.
        judging: the gates in judging order.
        connection: DuckDB connection with the view `judged`: every row's columns, its `hours` of audio, its status
            `now` and `after`, and the `reason` if it is filtered. Status `pending` means that the row is no longer
            rejected, but that stages have never run on it.
    """

    plan: Plan
    changed: Mapping[tuple[str, str], float | None]
    gates: dict[str, Thresholds]
    judging: Sequence[Gate]
    connection: duckdb.DuckDBPyConnection


def rejudge(layout: Layout, overrides: Iterable[str]) -> Rejudged:
    """Judge every row of a dataset by other thresholds, without changing the dataset.

    Args:
        layout: the dataset.
        overrides: `column.min_field=bound` or `column.max_field=bound`; `null` for no threshold.

    Raises:
        NoDataset: the folder is not a dataset.
        DataProblem: the dataset is empty.
        UsageProblem: an override is not a threshold on a column of the dataset.
    """
    layout.require()
    plan = Plan.model_validate_json(layout.store.get(layout.plan))
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
            raise UsageProblem(
                f"--set {override}: expected column.min_field=NUMBER or column.max_field=NUMBER (null for no threshold)"
            )
        changed[column, name] = bound
    if not changed:
        raise UsageProblem("no threshold given; use --set, such as --set quality.min_bandwidth_hz=15000")
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
        raise DataProblem(f"{layout.url} has no rows yet")
    types = {field.name: field.type for field in schema_of(layout.store, file)}
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
    """SQL condition: whether a row has every column of the plan. Only kept rows have features."""
    if set(plan.columns) & set(FEATURES):
        return "verdict.status = 'kept'"
    return " and ".join(f'"{name}" is not null' for name in plan.columns if name in there) or "true"
