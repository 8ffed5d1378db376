"""Progress of a pull, measured by the growth of the staging folder, whatever the source."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

_EVERY_S = 0.2


class Progress(Protocol):
    """Called at every step of a pull, and several times a second while bytes arrive."""

    def __call__(self, name: str, step: str, done: int, total: int, /) -> None:
        """For the entry `name`, `done` of `total` bytes of this step are done (0 of 0 if unknown)."""


def silent(name: str, step: str, done: int, total: int) -> None:
    """Report no progress."""


@contextmanager
def watched(folder: Path, total: int, report: Callable[[int, int], None]) -> Iterator[None]:
    """Report the bytes in `folder`, at most `total`, until the block ends; then report `total`."""
    ended = Event()

    def watch() -> None:
        while not ended.wait(_EVERY_S):
            report(min(_bytes_in(folder), total), total)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        report(total, total)
    finally:
        ended.set()
        watcher.join()


def _bytes_in(folder: Path) -> int:
    total = 0
    with suppress(FileNotFoundError):  # pip has just moved a temporary file or folder; counted again next time
        for path in folder.rglob("*"):
            total += path.stat().st_size if path.is_file() else 0
    return total
