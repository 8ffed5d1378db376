"""A dataset in a folder: names are paths, a file is published by a rename, the right to write is a lock on a file."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from schemas.files import drafts, move_durably, write_durably
from schemas.storage.store import StoreBusy

if TYPE_CHECKING:
    import duckdb
    from pyarrow import fs

_STATE = "_songmill"
_CARD = "README.md"
_UPDATED_DRAFTS = ".marks.parquet.*"  # `update` has a lock of its own, so that others may write them at any time


class LocalStore:
    """The files of a folder; see `schemas.storage.store.Store`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)
        self.scratch = root / _STATE / "tmp"
        self.logs = root / _STATE / "logs"

    def __reduce__(self) -> tuple[type["LocalStore"], tuple[Path]]:
        return LocalStore, (self.root,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStore) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    @cached_property
    def filesystem(self) -> "fs.FileSystem":
        """The folder as Arrow sees it; files are mapped into memory."""
        from pyarrow import fs

        return fs.SubTreeFileSystem(str(self.root), fs.LocalFileSystem(use_mmap=True))

    def address(self, name: str) -> str:
        """See `Store`."""
        return str(self.root / name)

    def key(self, name: str) -> str:
        """See `Store`: under its name."""
        return name

    def let_read(self, connection: "duckdb.DuckDBPyConnection") -> None:
        """Nothing to do: DuckDB reads paths."""

    def refresh(self) -> None:
        """Nothing to do: a folder is looked at anew each time."""

    def version(self, name: str) -> object:
        """See `Store`."""
        try:
            stat = (self.root / name).stat()
        except FileNotFoundError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        place = self.root / folder
        if not place.is_dir():
            return []
        return sorted(f"{folder}/{path.name}" if folder else path.name for path in place.iterdir() if path.is_file())

    def exists(self, name: str) -> bool:
        """See `Store`."""
        return (self.root / name).is_file()

    def size(self, name: str) -> int:
        """See `Store`."""
        return (self.root / name).stat().st_size

    def get(self, name: str) -> bytes:
        """See `Store`."""
        return (self.root / name).read_bytes()

    def publish(self, files: Mapping[str, Path | bytes], removed: Iterable[str] = ()) -> None:
        """See `Store`."""
        for name, content in files.items():
            if isinstance(content, Path):
                move_durably(content, self.root / name)
            else:
                self.put(name, content)
        for name in removed:
            (self.root / name).unlink(missing_ok=True)

    def confirm(self) -> None:
        """Nothing to do: nobody can take the lock."""

    def put(self, name: str, content: bytes) -> None:
        """See `Store`."""
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, content)

    def put_names(self, folder: str) -> list[str]:
        """See `Store`."""
        files = (path for path in (self.root / folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in files)

    def discard(self, names: Iterable[str]) -> None:
        """See `Store`; folders that become empty go too."""
        for name in names:
            path = self.root / name
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()

    def update(self, name: str, change: Callable[[bytes | None], bytes]) -> None:
        """See `Store`."""
        target = self.root / name
        with FileLock(target.with_suffix(".lock")):
            self.put(name, change(target.read_bytes() if target.is_file() else None))

    def is_locked(self) -> bool:
        """Whether another process is inside `writing`; unknown, and no, of a dataset that may only be read."""
        try:
            with FileLock(self.root / _STATE / "lock", timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See `Store`; the operating system gives the lock back when the process ends, however it ends."""
        state = self.root / _STATE
        state.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(state / "lock", timeout=0):
                self._sweep()
                self.scratch.mkdir(exist_ok=True)
                yield
        except Timeout:
            raise StoreBusy(f"{self.url}: another songmill process is writing this dataset; wait for it") from None

    def _sweep(self) -> None:
        """Remove what killed processes had begun to write; not files that others update just now."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for name in self.strays():
            (self.root / name).unlink(missing_ok=True)

    def strays(self) -> list[str]:
        """See `Store`; without those of `update`."""
        state = self.root / _STATE
        places = ((self.root, _CARD), (state, "*"), (state / "commits", "*"))  # others' files may be in the root
        found = (path for folder, names in places for path in drafts(folder, names))
        return sorted(path.relative_to(self.root).as_posix() for path in found if not path.match(_UPDATED_DRAFTS))
