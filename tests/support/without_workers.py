"""Commands that curate in this process: the real operators and sinks, and no Ray.

For tests of what curation does and says. A run takes a second instead of ten: nothing is started, and what stages
import is imported once. What only workers can show (deaths, placement, joining and starting a cluster) needs a cluster.

As a module it is the command line in a process of its own, to be killed: `python -m tests.support.without_workers`.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pyarrow as pa
import pytest
from ray.exceptions import RayTaskError

import pipeline.curation.curate
import pipeline.curation.features
import pipeline.curation.scan
from pipeline.cli import app
from pipeline.execution.operator import Operator, OperatorSpec
from pipeline.execution.run_counts import RunCounts
from schemas.config import ResourceConfig
from tests.support.command import invoked


class _Notes:
    """In place of a flight recorder: nothing is left to read after a crash, for the reader would be gone as well."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()

    def note(self, stage: str, row_ids: Sequence[str] = ()) -> None:
        pass


@contextmanager
def in_this_process() -> Iterator[None]:
    """Let passes over songs run here."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (pipeline.curation.curate, pipeline.curation.features, pipeline.curation.scan):
            patch.setattr(module, "run_pass", _run_pass)
        for module in (pipeline.curation.curate, pipeline.curation.features):
            patch.setattr(module, "cluster", lambda *_: nullcontext())
            patch.setattr(module, "check_placeable", lambda *_: None)
        yield


def curated(*arguments: object, code: int = 0) -> tuple[str, str]:
    """`songmill ARGUMENTS` here; its stdout and stderr. Fails unless it exits with `code`."""
    with in_this_process():
        return invoked(*arguments, code=code)


def _run_pass(
    rows: pa.Table,
    operators: Sequence[OperatorSpec],
    sink: Callable[[pa.Table], Iterable[Any]],
    resources: ResourceConfig,
    counts: RunCounts,
    complete: Callable[[pa.Table], pa.Table] | None = None,
) -> Iterator[Any]:
    """`pipeline.execution.cluster.run_pass`, one block after the other."""
    started: list[Operator] = []
    for start in range(0, rows.num_rows, resources.rows_per_block):
        block = rows.slice(start, resources.rows_per_block)
        block = complete(block) if complete else block
        for number, spec in enumerate(operators):
            with _errors_as_rays():
                if number == len(started):
                    started.append(Operator(spec, _Notes()))  # type: ignore[arg-type]
                report, block = started[number](block, {})
        counts.finished(report)
        yield from sink(block)


@contextmanager
def _errors_as_rays() -> Iterator[None]:
    """An operator's error comes to the driver in one of Ray's."""
    try:
        yield
    except Exception as error:
        raise RayTaskError("work", traceback.format_exc(), error) from error


if __name__ == "__main__":
    with in_this_process():
        app()
