"""`songmill whatif --apply`: apply other thresholds to a dataset without running a model.

Newly rejected rows move to the quarantine. Rows that are no longer rejected come back if they have all columns of the
plan; otherwise they become pending, and the next `curate` completes them. Units are rewritten one by one, and the plan
is written last, so that running a killed command again completes it. Units whose rows wait for missing files are judged
too, but keep their old plan.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.curation.missing import waiting_units
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.rewrite_unit import read_unit, rewrite_unit
from pipeline.dataset.saved_config import change_gates, remember_plan
from pipeline.dataset.writing import describe_dataset, exclusive_lock
from pipeline.edit.rejudge import STANDING, Rejudged, rejudge
from pipeline.errors import DataProblem
from pipeline.planning.gates import Gate, first_rejecting
from schemas import columns
from schemas.commits import Commit, RowState
from schemas.dataset import Layout


def apply_thresholds(layout: Layout, overrides: Iterable[str]) -> None:
    """Judge a dataset by other thresholds and write the result.

    Args:
        layout: the dataset.
        overrides: `column.min_field=bound` or `column.max_field=bound`; `null` for no threshold.

    Raises:
        NoDataset: the folder is not a dataset.
        DataProblem: another process is writing it, or a run was interrupted.
        UsageProblem: an override is not a threshold on a column of the dataset.
    """
    with exclusive_lock(layout):
        judged = rejudge(layout, overrides)
        plan = judged.plan.model_copy(update={"gates": {c: bounds for c, bounds in judged.gates.items() if bounds}})
        ledger = Ledger(layout).open()
        waiting = waiting_units(ledger, judged.plan)
        if other_plan := [
            c.unit for c in ledger.commits.values() if c.plan not in (judged.plan.id, plan.id) and c.unit not in waiting
        ]:
            raise DataProblem(
                f"{layout.url}: {len(other_plan)} units were made with another plan because a run was interrupted; "
                f"finish it first: songmill curate {layout.url}"
            )
        after = _after(judged)
        for commit in [commit for commit in ledger.commits.values() if commit.plan != plan.id]:
            _apply(ledger, commit, after, judged.judging, commit.plan if commit.unit in waiting else plan.id)
        remember_plan(layout, plan)
        change_gates(layout, plan)
        describe_dataset(layout, plan)


def _after(judged: Rejudged) -> dict[str, str]:
    """Row id -> new status, of rows whose status changes and of all rows that are filtered."""
    changed = "select row_id, after from verdicts where after != now or after = 'filtered'"
    return dict(judged.connection.execute(changed).fetchall())


def _apply(ledger: Ledger, commit: Commit, after: Mapping[str, str], gates: Sequence[Gate], plan: str) -> None:
    if not commit.rows.keys() & after.keys():
        ledger.amend(commit.model_copy(update={"plan": plan}), {})
        return
    rows = read_unit(ledger.layout, commit)
    judging = [gate for gate in gates if gate.column in rows.column_names]
    facts = rows.select(["row_id", "verdict", *{gate.column for gate in judging}]).to_pylist()
    verdicts = [_verdict(row, after.get(row["row_id"]), judging) for row in facts]
    place = rows.column_names.index("verdict")
    rows = rows.set_column(place, rows.schema.field(place), pa.array(verdicts, columns.VERDICT))
    states = {
        row["row_id"]: _state(commit.rows[row["row_id"]], verdict["status"])
        for row, verdict in zip(facts, verdicts, strict=True)
    }
    rewrite_unit(ledger, commit, rows, states, plan)


def _verdict(row: Mapping[str, Any], after: str | None, gates: Iterable[Gate]) -> dict[str, Any]:
    verdict: dict[str, Any] = row["verdict"]
    why = first_rejecting(gates, row)
    if after is None or (after == "filtered" and (why is None or verdict["stage"] in STANDING)):
        return verdict
    if after == "filtered" and why:
        return {**verdict, **why.verdict(row[why.column])}
    details = dict.fromkeys(("stage", "reason", "message"))
    if after == "pending":
        details = {"stage": "whatif", "reason": "waits_for_models", "message": "accepted by other thresholds"}
    return {**verdict, "status": after, **details}


def _state(state: RowState, status: str) -> RowState:
    if status == state.status:
        return state
    since = None if status == "kept" else datetime.now(UTC)
    return replace(state, status=status, first_seen=since, tries=1)
