"""Ends what Ray leaves behind when this process is killed: two of its agents live on for a minute or more.

They want to tell the head why, which is gone as well. So a process of its own holds a pipe whose other end closes when
this process is gone, however it went, and ends them. It knows them by a variable of their environment.
"""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_MARK = "SONGMILL_STARTED_BY"
_BY_THEMSELVES_S = 3.0  # most of Ray's processes notice


@contextmanager
def children_end_with_this_process() -> Iterator[None]:
    """See to it that processes started within the block do not outlive this one by more than a few seconds."""
    os.environ[_MARK] = secrets.token_hex(16)
    watcher = subprocess.Popen(
        [sys.executable, "-I", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        yield
    finally:
        watcher.kill()
        watcher.communicate()
        del os.environ[_MARK]


def _end_marked() -> None:
    """Wait until the parent is gone, and kill those of its children that are still there."""
    sys.stdin.read()
    time.sleep(_BY_THEMSELVES_S)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(_MARK) == os.environ[_MARK]:
                process.kill()


if __name__ == "__main__":
    _end_marked()
