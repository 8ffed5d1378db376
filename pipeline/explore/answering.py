"""The process that evaluates conditions, on one index at a time and within a memory limit.

What a user types is SQL, and DuckDB's own memory limit does not cover what its expressions allocate. So this process
has a limit of its own, and dies instead of the server; `pipeline.explore.conditions` is the server's side.
"""

import multiprocessing
import os
import resource
import signal
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import duckdb
import psutil

from pipeline.explore.index import Changed, Index, is_unreadable
from pipeline.explore.live import Marks
from pipeline.explore.query import BadExpression, Catalog, Page
from pipeline.explore.selection import Selection
from schemas.dataset import Layout


@dataclass(frozen=True)
class Question:
    """A request for a page.

    Attributes:
        layout: the dataset.
        index: the file of its index.
        selection: what to show, with a condition.
        marks: the current ones; None if they have not changed since the question before.
    """

    layout: Layout
    index: Path
    selection: Selection
    marks: Marks | None


class Begun:
    """Sent when the index is open and the condition's time limit starts."""


class TooLarge:
    """Sent instead of an answer when memory ran out; the process then ends."""


Answer = Page | BadExpression | Changed | RuntimeError | TooLarge


def answer(questions: Connection, memory_bytes: int, limit_s: float) -> None:
    """Answer questions until the server closes its end or dies, each with `Begun` and an `Answer`.

    Args:
        questions: receives `Question`.
        memory_bytes: how much more memory this process may allocate.
        limit_s: time limit of a query in seconds.
    """
    _keep_to_itself()
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    _limit_memory(memory_bytes)
    answering = _Answering(questions, limit_s)
    with suppress(EOFError):
        while not isinstance(found := answering.to(questions.recv()), TooLarge):
            questions.send(found)
        questions.send(found)


class _Answering:
    """Keeps the index of the last question open, with its cached results."""

    def __init__(self, begun: Connection, limit_s: float) -> None:
        self._begun, self._limit_s = begun, limit_s
        self._catalog: Catalog | None = None
        self._marks: Marks

    def to(self, question: Question) -> Answer:
        self._marks = question.marks or self._marks
        try:
            catalog = self._opened(question)
            self._begun.send(Begun())
            return catalog.page(question.selection, self._marks)
        except BadExpression as problem:
            return problem if not isinstance(problem.__cause__, duckdb.OutOfMemoryException) else TooLarge()
        except (MemoryError, duckdb.OutOfMemoryException):
            return TooLarge()
        except OSError as problem:
            return Changed(str(problem))
        except Exception as problem:
            if isinstance(problem, duckdb.Error) and is_unreadable(problem):
                return Changed(str(problem))
            return RuntimeError(traceback.format_exc())

    def _opened(self, question: Question) -> Catalog:
        if self._catalog and self._catalog.index.file == question.index:
            return self._catalog
        if self._catalog:
            self._catalog.index.close()
            self._catalog = None
        self._catalog = Catalog(Index(question.layout, question.index), self._limit_s)
        return self._catalog


def _keep_to_itself() -> None:
    """Ignore Ctrl-C and write nothing to the terminal: both belong to the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if the machine runs out of memory, kill this one first


def _end_with_the_server() -> None:
    """Exit as soon as the server does, however it ended and whatever is in progress."""
    server = multiprocessing.parent_process()
    assert server
    wait([server.sentinel])
    os._exit(0)


def _limit_memory(memory_bytes: int) -> None:
    """Limit writable memory only: address space that DuckDB's threads and libraries merely reserve costs nothing."""
    now = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (now + memory_bytes, now + memory_bytes))
