"""Where rows are turned away: the steps of the DAG in the order in which rows pass them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.dataset.stats import VerdictCount
from pipeline.planning.dag import NATIVE
from pipeline.planning.plan import Plan, StagePlan
from schemas.dataset import FEATURES


@dataclass(frozen=True)
class Step:
    """A step of the DAG: the rows that enter it, and those it turns away, by status and reason."""

    name: str
    entering: int
    turned_away: Mapping[str, int]

    @property
    def leaving(self) -> int:
        """Rows that pass the step."""
        return self.entering - sum(self.turned_away.values())


def funnel(plan: Plan, verdicts: Iterable[VerdictCount], rows: int) -> list[Step]:
    """Every step, in the order in which rows pass them.

    Args:
        plan: the dataset's plan.
        verdicts: counts of the rows that were turned away.
        rows: number of rows in the dataset.
    """
    away: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for verdict in verdicts:
        reason = f"{verdict.status}: {verdict.reason or verdict.status}"
        away[verdict.stage or ""][reason] = away[verdict.stage or ""].get(reason, 0) + verdict.rows
    steps = []
    for name, stages in _order(plan, away):
        turned_away: dict[str, int] = {}
        for stage in stages:
            turned_away |= away.get(stage, {})
        steps.append(Step(name, rows, turned_away))
        rows = steps[-1].leaving
    return steps


def _order(plan: Plan, away: Iterable[str]) -> list[tuple[str, set[str]]]:
    """Step -> its names in verdicts: stages fail under their own name, gates reject under their column's."""
    stages = [(column, stage) for column, stage in plan.columns.items() if column not in FEATURES]
    scan = [_step(column, stage) for column, stage in stages if _is_scan(stage)]
    later = [_step(column, stage) for column, stage in stages if not _is_scan(stage)]
    between = [("license", {"license"}), ("dedup", {"dedup"})]
    known = set().union(*(names for _, names in [*scan, *between, *later]))
    others = [(name or "pending", {name}) for name in sorted({*away} - known)]
    between = [step for step in between if step[0] in away or (step[0] == "dedup" and plan.dedup)]
    return [*scan, *between, *others, *later]


def _step(column: str, stage: StagePlan) -> tuple[str, set[str]]:
    return stage.name, {stage.name, column}


def _is_scan(stage: StagePlan) -> bool:
    return NATIVE in stage.working or NATIVE in stage.reads
