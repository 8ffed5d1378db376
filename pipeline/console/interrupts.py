"""What Ctrl-C and SIGTERM do to a command, and the exit code that says so.

Both raise: KeyboardInterrupt and `Terminated`. Python does so once the current call has returned to it. Ray's calls may
take minutes to do so, and its shutdown may never end, so a thread can watch for signals too, and kills the process if
it is still running a while later. A dataset survives that at any moment (see `pipeline.dataset.ledger`).
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import psutil

_GRACE_S = 10.0
_SAME_SIGNAL_S = 1.0  # `timeout` and others send one signal twice, to a process and to its group
_SHOW_CURSOR = b"\x1b[?25h"
_ENDED_BY = 128  # and the signal's number: an exit code, as shells give it
INTERRUPTED, TERMINATED = _ENDED_BY + signal.SIGINT, _ENDED_BY + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM; code that cleans up after Ctrl-C also does so after this."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 143 after SIGTERM."""
    return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED


@contextmanager
def raised_on_sigterm() -> Iterator[None]:
    """SIGTERM, a scheduler's Ctrl-C, raises as that does."""
    with handled_by(_raise_terminated, signal.SIGTERM):
        yield


@contextmanager
def handled_by(handler: Callable[..., object], *numbers: signal.Signals) -> Iterator[None]:
    """Have a function called when one of these signals comes, until the block ends.

    Only the main thread may: in any other, signals are handled as before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def ends_on_signal(grace_s: float = _GRACE_S) -> Iterator[None]:
    """Kill this process and its children if the block has not ended some time after SIGINT or SIGTERM, or on a second.

    Args:
        grace_s: how long the block may take to end, in seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    stderr = os.dup(2)  # as it is now, before starting Ray redirects it
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, stderr, grace_s), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # ends the thread


def _raise_terminated(*_: object) -> NoReturn:
    raise Terminated


def _watch(reader: int, stderr: int, grace_s: float) -> None:
    """Read signal numbers as they arrive, until the writing end is closed."""
    came, number = 0.0, 0
    while True:
        left_s = max(0.0, came + grace_s - time.monotonic()) if number else None
        if not select.select([reader], [], [], left_s)[0]:
            _kill(number, stderr)
        got = os.read(reader, 1)
        if not got:
            os.close(reader)
            os.close(stderr)
            return
        if got[0] in (signal.SIGINT, signal.SIGTERM):
            if number and time.monotonic() - came > _SAME_SIGNAL_S:
                _kill(number, stderr)
            came, number = (came, number) if number else (time.monotonic(), got[0])


def _kill(number: int, stderr: int) -> NoReturn:
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    if os.isatty(stderr):
        os.write(stderr, _SHOW_CURSOR)
    os.write(stderr, b"error: stopped; run the same command again to continue from what is committed\n")
    os._exit(_ENDED_BY + number)
