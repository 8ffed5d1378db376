"""Text that grows by lines, for whoever watches: appended to a file of a folder, put whole into a bucket now and then.

It is written without fsync, and nothing rests on it: where it cannot be written, lines are lost and nobody is stopped.
"""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from schemas.storage.local import LocalStore
from schemas.storage.store import Store

_PUT_EVERY_S = 30.0


class Lines(Protocol):
    """A text to add lines to."""

    def add(self, line: str) -> None:
        """Add a line, given without its end."""

    def close(self) -> None:
        """It is complete."""


def growing(store: Store, name: str) -> Lines:
    """Begin a text.

    Args:
        store: the dataset's.
        name: of its file; what is there is replaced.

    Raises:
        OSError: it cannot be begun.
    """
    return _Appended(store.root / name) if isinstance(store, LocalStore) else _PutWhole(store, name)


class _Appended:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8", buffering=1)

    def add(self, line: str) -> None:
        with suppress(OSError):
            self._file.write(f"{line}\n")

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()


class _PutWhole:
    """Held in memory: a line every ten seconds is 2 MB a day."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._lines: list[str] = []
        self._written = -1  # lines
        self._over = threading.Event()
        self._putting = threading.Thread(target=self._keep_putting, name="run record", daemon=True)
        self._putting.start()

    def add(self, line: str) -> None:
        self._lines.append(line)

    def close(self) -> None:
        self._over.set()
        self._putting.join()
        self._put()

    def _keep_putting(self) -> None:
        while True:
            self._put()
            if self._over.wait(_PUT_EVERY_S):
                return

    def _put(self) -> None:
        lines = self._lines[:]
        if len(lines) != self._written:
            with suppress(OSError):
                self._store.put(self._name, "".join(f"{line}\n" for line in lines).encode())
                self._written = len(lines)
