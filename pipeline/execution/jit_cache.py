"""A numba cache of its own for every worker.

songmill's stages use no numba, but a user's engine or a library behind one may. numba's cache is not made for two
processes that compile at once: its index is read, changed and written without a lock, and a gufunc is cached in two
files, the function and a wrapper that knows it by a name with a number counted per process. Where the two files come
from two processes the wrapper is looked up by a name that it does not have; its address is 0, and calling it ends
this process and every later one that reads the cache (numba#10128, librosa#1998).
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
from platformdirs import user_cache_path


def use_own_jit_cache() -> None:
    """Let numba, should anything import it, cache for this process alone; caches of processes that are gone go too."""
    caches = user_cache_path("songmill") / "jit"
    for left in _left_behind(caches):
        shutil.rmtree(left, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = str(caches / str(os.getpid()))  # numba makes the folder when it needs it


def _left_behind(caches: Path) -> list[Path]:
    with suppress(OSError):
        # Ours too: a process of this number that has just begun has cached nothing yet.
        return [path for path in caches.iterdir() if path.name == str(os.getpid()) or not _runs(path.name)]
    return []


def _runs(pid: str) -> bool:
    return pid.isdecimal() and psutil.pid_exists(int(pid))
