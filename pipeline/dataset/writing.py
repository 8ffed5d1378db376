"""Before and after every change of a dataset: take its lock, and update its statistics and card."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from pipeline.dataset.card import write_card
from pipeline.dataset.row_moves import finish_moves
from pipeline.dataset.stats import Stats
from pipeline.dataset.stats_cache import renew_stats
from pipeline.errors import DataProblem
from pipeline.planning.plan import Plan
from schemas.dataset import Layout


class DatasetLocked(DataProblem):
    """Another process is writing the dataset."""


@contextmanager
def exclusive_lock(layout: Layout) -> Iterator[None]:
    """Hold the dataset's write lock; renames that a killed process left unfinished are completed first.

    The operating system releases the lock when the process ends, however it ends.

    Raises:
        DatasetLocked: another process holds it.
    """
    layout.state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(layout.state / "lock", timeout=0):
            finish_moves(layout)
            yield
    except Timeout:
        raise DatasetLocked(f"{layout.root}: another songmill process is writing this dataset; wait for it") from None


def describe_dataset(layout: Layout, plan: Plan) -> Stats:
    """Update the statistics and the card of a dataset; returns the statistics."""
    stats = renew_stats(layout)
    write_card(layout, plan, stats)
    return stats
