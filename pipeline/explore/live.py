"""The dataset as it is now: its index, made anew when a run commits, and its marks."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from pipeline.errors import DataProblem
from pipeline.explore.index import Changed, Index
from pipeline.marks import Mark, read_marks
from schemas.dataset import Layout
from schemas.tables import MARKS

_TRIES = 3
_SHARE = 10  # while a run commits, at most so much of the time goes into indices: one part of ten


@dataclass(frozen=True)
class Marks:
    """Marks at one moment.

    Attributes:
        version: another one where they may differ.
        by_row: row id -> its mark.
    """

    version: object
    by_row: Mapping[str, Mark]

    @cached_property
    def table(self) -> pa.Table:
        """Of schema `MARKS`, for joins."""
        rows = [{"row_id": row_id, **mark.model_dump()} for row_id, mark in self.by_row.items()]
        return pa.Table.from_pylist(rows, MARKS)


class Live:
    """A dataset that others may change while it is looked at."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        """Make the index.

        Args:
            layout: the dataset.
            folder: for the index; somebody else removes it.

        Raises:
            DataProblem: the folder holds no dataset.
        """
        if not layout.plan.is_file():
            raise DataProblem(f"{layout.root} is no songmill dataset: give a folder that `songmill curate` wrote")
        self.layout = layout
        self._folder, self._number = folder, 0
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._marks = Marks(None, {})
        self._state, self._index = self._opened()

    @property
    def index(self) -> Index:
        """The newest index. It is made anew where the dataset has changed, but not all the time."""
        with self._lock:
            if self.stale and time.monotonic() >= self._not_before:
                self._replace()
            return self._index

    @property
    def stale(self) -> bool:
        """Whether the dataset has changed since the index was made."""
        return _state(self.layout) != self._state

    def reopen(self) -> Index:
        """The index made anew, for something was not where it said."""
        with self._lock:
            self._replace()
            return self._index

    @property
    def marks(self) -> Marks:
        """The marks as they are now; the same object as long as nobody changes them."""
        with self._lock:
            version = _file_state(self.layout.marks)
            if self._marks.version != version:
                self._marks = Marks(version, read_marks(self.layout))
            return self._marks

    def _replace(self) -> None:
        old = self._index
        self._state, self._index = self._opened()
        old.close()

    def _opened(self) -> tuple[object, Index]:
        began = time.monotonic()
        for _ in range(_TRIES):
            state = _state(self.layout)
            self._number += 1
            file = self._folder / f"index-{self._number}.duckdb"
            try:
                index = Index(self.layout, file)
            except Changed as problem:
                said = problem
                continue
            finally:
                file.unlink(missing_ok=True)  # whoever has it open keeps it
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
