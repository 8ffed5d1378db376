"""Local folders for files on their way into a bucket, of which killed processes leave none for long."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def private_folder(folder: Path) -> Iterator[None]:
    """A folder that only this user can read, for the length of the block.

    Folders beside it whose process is gone are removed: the operating system has given back their lock.
    """
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    for other in folder.parent.iterdir():
        if other.is_dir():
            with suppress(Timeout), FileLock(_lock_of(other), timeout=0):
                shutil.rmtree(other, ignore_errors=True)
                _lock_of(other).unlink(missing_ok=True)
    with FileLock(_lock_of(folder)):  # before there is a folder that another process could take for abandoned
        folder.mkdir(mode=0o700)
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _lock_of(folder).unlink(missing_ok=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
