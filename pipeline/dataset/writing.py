"""Before and after every change of a dataset: take its lock, and update its statistics and card."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.dataset.card import write_card
from pipeline.dataset.row_moves import finish_moves
from pipeline.dataset.stats import Stats
from pipeline.dataset.stats_cache import renew_stats
from pipeline.errors import DataProblem
from pipeline.planning.plan import Plan
from schemas.dataset import Layout
from schemas.storage.store import Overtaken, StoreBusy


class DatasetLocked(DataProblem):
    """Another process is writing the dataset."""


@contextmanager
def exclusive_lock(layout: Layout) -> Iterator[None]:
    """Hold the right to write the dataset; renames that a killed process left unfinished are completed first.

    It is given back when the process ends, however it ends.

    Raises:
        DatasetLocked: another process holds it.
        DataProblem: another process has taken it meanwhile, as it may in a bucket that was out of reach.
    """
    try:
        with layout.store.writing():
            finish_moves(layout)
            yield
    except StoreBusy as error:
        raise DatasetLocked(str(error)) from None
    except Overtaken as error:
        raise DataProblem(f"{layout.url}: {error}") from error


def describe_dataset(layout: Layout, plan: Plan) -> Stats:
    """Update the statistics and the card of a dataset; returns the statistics."""
    layout.store.confirm()
    stats = renew_stats(layout)
    write_card(layout, plan, stats)
    return stats
