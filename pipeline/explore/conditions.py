"""Conditions that a user types are evaluated in separate processes, which die instead of the server.

A process is kept warm, with the index open and its results cached, so that a condition costs no more than it would in
the server. A process that takes too much time or memory, or whose client has disconnected, is killed and replaced.
"""

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import psutil

from pipeline.explore.answering import Begun, Question, TooLarge, answer
from pipeline.explore.index import Index
from pipeline.explore.live import Marks
from pipeline.explore.query import LIMIT_S, BadExpression, Page, too_long
from pipeline.explore.selection import Selection

MEMORY_BYTES = 2 << 30  # of one process
_PROCESSES = 2  # a slow condition blocks only one of them
_START_S = 60.0  # on a busy machine, with an index to open
_GRACE_S = 2.0  # DuckDB stops a query on time, unless it is busy with a single value
_LOOK_S = 0.05

_spawning = multiprocessing.get_context("spawn")  # a server with threads must not fork


class Conditions:
    """Answers questions about selections with a condition, from any thread."""

    def __init__(self, limit_s: float = LIMIT_S, memory_bytes: int = MEMORY_BYTES, processes: int = _PROCESSES) -> None:
        """Nothing is started yet.

        Args:
            limit_s: time limit of a condition in seconds.
            memory_bytes: memory limit of a process.
            processes: how many conditions are evaluated at once; others wait.
        """
        self._limit_s, self._memory_bytes = limit_s, memory_bytes
        self._free = threading.BoundedSemaphore(processes)
        self._idle: list[_Process] = []  # the most recently used last: it has the most in its cache

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._idle:
            self._idle.pop().end()

    def warm(self) -> None:
        """Start a process, without waiting for it."""
        self._idle.append(_Process(self._limit_s, self._memory_bytes))

    def page(self, index: Index, selection: Selection, marks: Marks, left: Callable[[], bool] = lambda: False) -> Page:
        """A page of a selection and its counts.

        Args:
            index: index of the dataset.
            selection: what to show, with a condition.
            marks: the current ones.
            left: whether the client has disconnected.

        Raises:
            BadExpression: the condition is invalid, takes too much time or memory, or the client has disconnected.
            Changed: the dataset changed meanwhile.
        """
        with self._place(left), self._process() as process:
            return process.ask(index, selection, marks, left)

    @contextmanager
    def _place(self, left: Callable[[], bool]) -> Iterator[None]:
        waiting = time.monotonic() + self._limit_s
        while not self._free.acquire(timeout=_LOOK_S):
            if left() or time.monotonic() > waiting:
                raise BadExpression("other conditions are being evaluated; reload the page in a moment")
        try:
            yield
        finally:
            self._free.release()

    @contextmanager
    def _process(self) -> Iterator["_Process"]:
        process = self._living()
        try:
            yield process
        finally:
            if process.waits:
                self._idle.append(process)
            else:
                process.end()
                self.warm()

    def _living(self) -> "_Process":
        with suppress(IndexError):
            while not (process := self._idle.pop()).is_alive:
                process.end()
            return process
        return _Process(self._limit_s, self._memory_bytes)


class _Process:
    """One process, seen from the server.

    Attributes:
        waits: whether it is ready for a question, having answered the one before.
    """

    def __init__(self, limit_s: float, memory_bytes: int) -> None:
        self._limit_s, self._memory_bytes = limit_s, memory_bytes
        self._pipe, theirs = _spawning.Pipe()
        self._process = _spawning.Process(
            target=answer, args=(theirs, memory_bytes, limit_s), daemon=True, name="songmill-conditions"
        )
        self._process.start()
        theirs.close()
        self._seen = psutil.Process(self._process.pid)
        self._marks: Marks | None = None
        self.waits = True

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def ask(self, index: Index, selection: Selection, marks: Marks, left: Callable[[], bool]) -> Page:
        self.waits = False
        try:
            new = Marks(marks.version, marks.table) if marks is not self._marks else None
            self._pipe.send(Question(index.layout, index.file, selection, new))
            self._marks = marks
            found = self._received(_START_S, left)
            if isinstance(found, Begun):
                found = self._received(self._limit_s + _GRACE_S, left)
        except (EOFError, OSError, psutil.NoSuchProcess):
            raise self._ended() from None
        if isinstance(found, TooLarge):
            raise self._too_large()
        self.waits = True
        if isinstance(found, Page):
            return found
        raise found

    def end(self) -> None:
        """Kill the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _received(self, limit_s: float, left: Callable[[], bool]) -> Any:
        until = time.monotonic() + limit_s
        while not self._pipe.poll(_LOOK_S):
            if self._seen.memory_info().rss > self._memory_bytes:
                raise self._too_large()
            if time.monotonic() > until:
                raise BadExpression(too_long(self._limit_s))
            if left():
                raise BadExpression("the page was closed before the condition was evaluated")
        return self._pipe.recv()

    def _too_large(self) -> BadExpression:
        return BadExpression(
            f"the condition took more than {self._memory_bytes / (1 << 30):.3g} GiB of memory and was stopped"
        )

    def _ended(self) -> BadExpression:
        self._process.join(_GRACE_S)
        how = self._process.exitcode
        cause = signal.Signals(-how).name if how and how < 0 else f"exit code {how}"
        return BadExpression(f"the process that evaluated the condition ended ({cause}); reload the page")
