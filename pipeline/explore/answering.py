"""The process that answers conditions: it looks at one index at a time, and may take so much memory and no more.

What a user types is SQL, and DuckDB's own memory limit leaves out what its expressions make. So this process has a
limit of its own, and is what dies of it; `pipeline.explore.conditions` is the server's side.
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

from pipeline.explore.index import Changed, Index
from pipeline.explore.live import Marks
from pipeline.explore.query import BadExpression, Catalog, Page
from pipeline.explore.selection import Selection
from schemas.dataset import Layout


@dataclass(frozen=True)
class Question:
    """A page that is asked for.

    Attributes:
        layout: the dataset.
        index: the file of its index.
        selection: with a condition.
        marks: as they are now; None where they are those of the question before.
    """

    layout: Layout
    index: Path
    selection: Selection
    marks: Marks | None


class Begun:
    """Sent when the index is open and the condition's time begins."""


class TooLarge:
    """Sent instead of an answer when memory was refused; the process ends then."""


Answer = Page | BadExpression | Changed | RuntimeError | TooLarge


def answer(questions: Connection, memory_bytes: int, limit_s: float) -> None:
    """Answer questions until the server closes its end or dies, each with `Begun` and an `Answer`.

    Args:
        questions: sends `Question`.
        memory_bytes: how much this process may take beyond what it has now.
        limit_s: how long a query may take.
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
    """Keeps the index of the last question open, and what was found in it."""

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
        except (duckdb.IOException, OSError) as problem:
            return Changed(str(problem))
        except Exception:
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
    """Ctrl-C in the terminal is for the server, and the terminal for what the server says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if the machine runs out of memory, rather this one


def _end_with_the_server() -> None:
    """At once, whatever is being worked on, and however the server ended."""
    server = multiprocessing.parent_process()
    assert server
    wait([server.sentinel])
    os._exit(0)


def _limit_memory(memory_bytes: int) -> None:
    """Writable memory alone: address space that DuckDB's threads and libraries only reserve costs nothing."""
    now = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (now + memory_bytes, now + memory_bytes))
