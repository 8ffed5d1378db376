"""Keeps the terminal for our own output: what Ray, its core and libraries print goes to a log file of the dataset.

Ray writes in several ways: its core to descriptor 2, its loggers, warnings and tracebacks of threads to `sys.stderr`,
its notices of dead workers to `sys.stdout`. So both streams go to the file, and our own output goes to `screen()`.
"""

import faulthandler
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TextIO

from pipeline.console.escaping import protected
from schemas.dataset import Layout

_KEPT = 20  # files of earlier runs
_screen: TextIO | None = None


def screen() -> TextIO:
    """Where progress goes: the real stderr, also while library output is redirected."""
    return _screen or sys.stderr


@contextmanager
def others_logged(layout: Layout) -> Iterator[None]:
    """Send other output to stdout and stderr to a file in `_songmill/logs/`, which is deleted if it stays empty.

    Those of a dataset in a bucket are in the user's folder for logs.
    """
    logs = layout.store.logs
    logs.mkdir(parents=True, exist_ok=True)
    _sweep(logs)
    path = logs / f"run-{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    try:
        with path.open("w", buffering=1, encoding="utf-8", errors="backslashreplace") as log, _redirected(log):
            yield
    finally:
        if path.exists() and not path.stat().st_size:
            path.unlink()


def _sweep(logs: Path) -> None:
    """Delete logs of earlier runs that are old, or empty because the run was killed."""
    earlier = sorted(logs.glob("run-*.log"))
    for old in earlier:
        if old in earlier[:-_KEPT] or not old.stat().st_size:
            old.unlink()


@contextmanager
def _redirected(log: TextIO) -> Iterator[None]:
    global _screen
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # or Ray does, with the log's descriptor, which may be reused for another file later
    sys.stdout.flush()
    sys.stderr.flush()
    with ExitStack() as back:
        real = back.enter_context(os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace"))
        _screen = protected(real) if _is_real(sys.stderr) else sys.stderr  # a test's or a notebook's
        for descriptor in (1, 2):
            back.callback(os.close, saved := os.dup(descriptor))
            back.callback(os.dup2, saved, descriptor)
            os.dup2(log.fileno(), descriptor)
        back.enter_context(redirect_stdout(log))
        back.enter_context(redirect_stderr(log))
        try:
            yield
        finally:
            _screen = None


def _is_real(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError):  # an in-memory stream
        return False
