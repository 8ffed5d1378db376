"""The current state of the dataset: its index, updated when a run commits, and its marks."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from pipeline.dataset.marks import Mark, marks_of, marks_table
from pipeline.errors import DataProblem
from pipeline.explore.index import Changed, Index
from pipeline.explore.index_build import Progress, silent
from pipeline.explore.index_cache import IndexCache
from schemas.dataset import Layout

_TRIES = 3
_SHARE = 10  # while a run commits, at most one tenth of the time is spent on updating the index


@dataclass(frozen=True)
class Marks:
    """Marks at one moment.

    Attributes:
        version: differs whenever the marks may differ.
        table: table of schema `MARKS`, for joins.
    """

    version: object
    table: pa.Table

    @cached_property
    def by_row(self) -> Mapping[str, Mark]:
        """Row id -> its mark."""
        return marks_of(self.table)


class Live:
    """A dataset that other processes may change while it is viewed."""

    def __init__(self, cache: IndexCache, progress: Progress = silent) -> None:
        """Open the index, or build it.

        Args:
            cache: where it is kept.
            progress: called with how many files have been read, of how many; only now, not at later updates.

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
        """The newest index. It is updated when the dataset has changed, but at a limited rate."""
        with self._lock:
            if self.stale and time.monotonic() >= self._not_before:
                self._replace()
            return self._index

    @property
    def stale(self) -> bool:
        """Whether the dataset has changed since the index was built."""
        return _state(self.layout) != self._state

    def reopen(self) -> Index:
        """The index of the current state, after a row was not where the old one said."""
        with self._lock:
            self._replace()
            return self._index

    @property
    def marks(self) -> Marks:
        """The current marks; the same object as long as they do not change."""
        with self._lock:
            version = self.layout.store.version(self.layout.marks)
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
                last = problem
                continue
            self._not_before = time.monotonic() + (time.monotonic() - began) * (_SHARE - 1)
            return state, index
        raise DataProblem(f"{self.layout.url} is changing faster than it can be read; try again ({last})")


def _state(layout: Layout) -> object:
    """A value that changes with every commit, which adds or removes a record."""
    return layout.store.version(layout.commits), layout.store.version(layout.plan)
