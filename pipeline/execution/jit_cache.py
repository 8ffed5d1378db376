"""A separate numba cache for every worker.

songmill's stages do not use numba, but a user's engine or one of its libraries may. numba's cache is not safe for
concurrent compilation: its index is read, changed and written without a lock, and a gufunc is cached in two files, the
function and a wrapper that refers to it by a name with a per-process counter. If the two files come from different
processes, the lookup of that name yields address 0, and calling it crashes this process and every later one that reads
the cache (numba#10128, librosa#1998).
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
from platformdirs import user_cache_path


def use_own_jit_cache() -> None:
    """Set a numba cache folder for this process only, in case numba is imported; delete those of ended processes."""
    caches = user_cache_path("songmill") / "jit"
    for cache in _stale_caches(caches):
        shutil.rmtree(cache, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = str(caches / str(os.getpid()))  # numba creates the folder when needed


def _stale_caches(caches: Path) -> list[Path]:
    with suppress(OSError):
        # Including this process's own: it has cached nothing yet, so a cache is from an earlier process with its id.
        return [path for path in caches.iterdir() if path.name == str(os.getpid()) or not _runs(path.name)]
    return []


def _runs(pid: str) -> bool:
    return pid.isdecimal() and psutil.pid_exists(int(pid))
