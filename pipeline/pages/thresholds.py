"""The thresholds that a dataset's rows were judged by."""

from collections.abc import Iterable

from pipeline.planning.gates import Gate, build_gates, in_judging_order
from pipeline.planning.plan import Plan
from schemas.commits import committed_files
from schemas.dataset import Layout
from schemas.storage.parquet import schema_of


def dataset_gates(layout: Layout, files: Iterable[str] | None = None) -> tuple[Gate, ...]:
    """The gates of a dataset's plan, in the order in which they are applied; none before its first rows.

    Args:
        layout: the dataset.
        files: names of its committed files, if known; otherwise the records are read.
    """
    plan = Plan.model_validate_json(layout.store.get(layout.plan))
    if files is None:
        files = committed_files(layout)
    file = next((name for name in files if not name.startswith("features/")), None)
    types = {field.name: field.type for field in schema_of(layout.store, file)} if file else {}
    return in_judging_order(build_gates(plan.gates, types), plan.columns)
