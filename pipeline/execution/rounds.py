"""Passes that are repeated for the rows that a failing cluster has left."""

import logging
from collections.abc import Callable

import pyarrow as pa
import ray

from pipeline.errors import DataProblem, unwritable
from pipeline.execution.operator import StageCannotStart
from pipeline.execution.progress import shown
from pipeline.execution.run_counts import RunCounts

_log = logging.getLogger("songmill.rounds")

_ROUNDS = 3  # when the cluster itself fails, rows that are not committed yet run again this often


class PassFailed(DataProblem):
    """A pass that could not be finished; the message says what to do."""


def in_rounds(
    title: str,
    rows: pa.Table,
    still_left: Callable[[], pa.Table],
    work: Callable[[pa.Table, RunCounts], None],
    counts: RunCounts,
    *,
    progress: bool,
) -> None:
    """Work on rows, and if the cluster fails again on those that are left.

    Raises:
        PassFailed: a stage cannot start, the cluster fails every time, or rows are left after all rounds.
        StageKillsWorkers: a stage does, whatever song it is given.
    """
    counts.begin_pass(title)
    for attempt in range(_ROUNDS):
        if not rows.num_rows:
            return
        counts.begin_round()
        counts.event("pass_started", title=title, rows=rows.num_rows, attempt=attempt + 1)
        with shown(f"{title} again" if attempt else title, rows.num_rows, counts, enabled=progress):
            try:
                work(rows, counts)
            except ray.exceptions.RayTaskError as error:  # an operator's own error; another try would meet it again
                if isinstance(error.cause, StageCannotStart):
                    raise PassFailed(str(error.cause)) from error
                _log.exception("an operator failed")
                raise PassFailed(f"an operator failed: {error.cause!r}; _songmill/logs has the traceback") from error
            except ray.exceptions.RayError as error:
                _log.exception("the cluster failed")
                if attempt == _ROUNDS - 1:
                    raise PassFailed(f"the cluster failed {_ROUNDS} times, at last with: {error}") from error
            except OSError as error:  # the disk is full, say; shards are written by this process
                raise PassFailed(unwritable(error)) from error
        rows = still_left()
        counts.publish()
        counts.event("pass_ended", title=title, rows_left=rows.num_rows, **counts.facts())
    if rows.num_rows:
        raise PassFailed(f"{rows.num_rows} rows are not done after {_ROUNDS} rounds; run the same command again")
