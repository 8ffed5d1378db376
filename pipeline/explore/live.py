"""The dataset as it is now: its index, brought up to date when a run commits, and its marks."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from pipeline.dataset.marks import Mark, marks_of, marks_table
from pipeline.errors import DataProblem
from pipeline.explore.index import Changed, Index
from pipeline.explore.index_build import Progress, silent
from pipeline.explore.index_cache import IndexCache
from schemas.dataset import Layout

_TRIES = 3
_SHARE = 10  # while a run commits, at most so much of the time goes into indices: one part of ten


@dataclass(frozen=True)
class Marks:
    """Marks at one moment.

    Attributes:
        version: another one where they may differ.
        table: of schema `MARKS`, for joins.
    """

    version: object
    table: pa.Table

    @cached_property
    def by_row(self) -> Mapping[str, Mark]:
        """Row id -> its mark."""
        return marks_of(self.table)


class Live:
    """A dataset that others may change while it is looked at."""

    def __init__(self, cache: IndexCache, progress: Progress = silent) -> None:
        """Open the index, or make it.

        Args:
            cache: where it stays.
            progress: told how many of how many files have been read, now but not later on.

        Raises:
            DataProblem: the dataset is changing too fast.
        """
        self.layout = cache.layout
        self._cache = cache
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._marks = Marks(None, marks_table(self.layout))
        self._state, self._index = self._opened(progress)

    @property
    def index(self) -> Index:
        """The newest index. It is renewed where the dataset has changed, but not all the time."""
        with self._lock:
            if self.stale and time.monotonic() >= self._not_before:
                self._replace()
            return self._index

    @property
    def stale(self) -> bool:
        """Whether the dataset has changed since the index was made."""
        return _state(self.layout) != self._state

    def reopen(self) -> Index:
        """The index of this moment, for something was not where it said."""
        with self._lock:
            self._replace()
            return self._index

    @property
    def marks(self) -> Marks:
        """The marks as they are now; the same object as long as nobody changes them."""
        with self._lock:
            version = _file_state(self.layout.marks)
            if self._marks.version != version:
                self._marks = Marks(version, marks_table(self.layout))
            return self._marks

    def _replace(self) -> None:
        old = self._index
        self._state, self._index = self._opened(silent)
        old.close()

    def _opened(self, progress: Progress) -> tuple[object, Index]:
        began = time.monotonic()
        for _ in range(_TRIES):
            state = _state(self.layout)
            try:
                index = self._cache.index(progress)
            except Changed as problem:
                said = problem
                continue
            self._not_before = time.monotonic() + (time.monotonic() - began) * (_SHARE - 1)
            return state, index
        raise DataProblem(f"{self.layout.root} is changing faster than it can be read; try again ({said})")


def _state(layout: Layout) -> object:
    """Another value after every commit: a record has appeared or gone."""
    return _file_state(layout.commits), _file_state(layout.plan)


def _file_state(path: Path) -> object:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size
