"""What every command that changes a dataset does before and afterwards: take its lock, describe what it has become."""

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
    """One process at a time writes a dataset, and finishes first what a killed one had begun to rename.

    The lock goes with the process, however that ends.

    Raises:
        DatasetLocked: another one does.
    """
    layout.state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(layout.state / "lock", timeout=0):
            finish_moves(layout)
            yield
    except Timeout:
        raise DatasetLocked(f"{layout.root}: another songmill process is writing this dataset; wait for it") from None


def describe_dataset(layout: Layout, plan: Plan) -> Stats:
    """Write the figures and the card of a dataset anew."""
    stats = renew_stats(layout)
    write_card(layout, plan, stats)
    return stats
