"""A dataset in a bucket: names are resolved by the commit log, and files are published by entries of it."""

import hashlib
import io
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import platformdirs
from fsspec.spec import AbstractFileSystem
from pyarrow import fs

from schemas.files import file_digest
from schemas.storage.commit_log import CommitLog, Place
from schemas.storage.lease import lease
from schemas.storage.objects import Objects, StorageError
from schemas.storage.options import StorageOptions
from schemas.storage.ranges import Ranges
from schemas.storage.scratch import private_folder
from schemas.storage.store import Overtaken

_IN_LOG = 256 * 1024  # bytes of a file that need no object of their own
_THREADS = 16  # of DuckDB: they wait for answers more than they work
_NEVER_IN_LOG = "_songmill/moves.json"  # it has uris of songs, and entries stay for good: forgotten songs must not
_REREADS = 3  # of a file whose digest is wrong, before it is said to be damaged
_UPLOADS = 4  # files of a unit at a time; each is sent in several parts at a time


class BucketStore:
    """The files of a dataset below a URL; see `schemas.storage.store.Store`.

    Pickled, it is only its address: another process opens it with the credentials of its own environment.
    """

    def __init__(self, url: str, options: StorageOptions) -> None:
        self.url = url.rstrip("/")
        self.options = options
        digest = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        mine = Path(tempfile.gettempdir()) / f"songmill-drafts-{os.getuid()}"
        self.scratch = mine / f"{digest}-{secrets.token_hex(8)}"
        self.logs = platformdirs.user_log_path("songmill") / digest
        self._objects = Objects(self.url, options.of_store(url), options.of_client())
        self._log = CommitLog(self._objects)
        self._is_read = False

    def __reduce__(self) -> tuple[type["BucketStore"], tuple[str, StorageOptions]]:
        return BucketStore, (self.url, self.options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketStore) and (other.url, other.options) == (self.url, self.options)

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def filesystem(self) -> fs.FileSystem:
        """See `Store`."""
        return fs.PyFileSystem(fs.FSSpecHandler(_Files(self)))

    def address(self, name: str) -> str:
        """See `Store`."""
        return f"{_Files(self).protocol}://{name}"

    def key(self, name: str) -> str:
        """See `Store`; a file that is part of the log has no key but its name."""
        return self._place(name).key or name

    def let_read(self, connection: duckdb.DuckDBPyConnection) -> None:
        """See `Store`."""
        files = _Files(self)
        if not connection.filesystem_is_registered(files.protocol):
            connection.register_filesystem(files)
            connection.execute(f"set threads = {_THREADS}")

    def refresh(self) -> None:
        """See `Store`. A writer knows all there is."""
        if self._log.epoch is None:
            self._log.refresh()
        self._is_read = True

    def version(self, name: str) -> object:
        """See `Store`."""
        self.refresh()
        if place := self._places.get(name):
            return place.key or place.text
        if any(known.startswith(f"{name}/") for known in self._places):
            return self._log.state.number
        found = self._objects.head(name)
        return found and found.tag

    def names(self, folder: str) -> list[str]:
        """See `Store`. Files that were put are not in the list."""
        return sorted(name for name in self._places if name.rpartition("/")[0] == folder)

    def exists(self, name: str) -> bool:
        """See `Store`."""
        return name in self._places or self._objects.head(name) is not None

    def size(self, name: str) -> int:
        """See `Store`."""
        return self._place(name).size

    def get(self, name: str) -> bytes:
        """See `Store`."""
        place = self._places.get(name)
        if place is not None and place.text is not None:
            return place.text.encode()
        for _ in range(_REREADS):
            found = self._objects.read(name if place is None else place.key or "")
            if found is None:
                raise FileNotFoundError(f"{self.url}/{name}: there is no such file")
            if place is None or hashlib.sha256(found.content).hexdigest() == place.sha256:
                return found.content
        raise StorageError(f"{self.url}/{name} is damaged: its content is not what was committed")

    def publish(self, files: Mapping[str, Path | bytes], removed: Iterable[str] = ()) -> None:
        """See `Store`: uploads first, then one entry of the log."""
        with ThreadPoolExecutor(_UPLOADS) as pool:
            places = dict(zip(files, pool.map(self._uploaded, files.keys(), files.values()), strict=True))
        try:
            self._log.append(places, removed)
        except Overtaken:  # nobody will ever name them
            self._objects.delete(place.key for place in places.values() if place.key)
            raise
        for content in files.values():
            if isinstance(content, Path):
                content.unlink()

    def strays(self) -> list[str]:
        """See `Store`."""
        self.refresh()
        return sorted(self._log.strays())

    def confirm(self) -> None:
        """See `Store`."""
        self._log.confirm()

    def put(self, name: str, content: bytes) -> None:
        """See `Store`."""
        self._objects.put(name, content)

    def put_names(self, folder: str) -> list[str]:
        """See `Store`."""
        return [found.key for found in self._objects.list(folder)]

    def discard(self, names: Iterable[str]) -> None:
        """See `Store`."""
        self._objects.delete(names)

    def update(self, name: str, change: Callable[[bytes | None], bytes]) -> None:
        """See `Store`."""
        while True:
            there = self._objects.read(name)
            content = change(None if there is None else there.content)
            if there is None:
                done = self._objects.create(name, content)
            else:
                done = there.content == content or self._objects.swap(name, content, there.tag)
            if done:
                return

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See `Store`."""
        with lease(self._objects, self.url, self.options.lease_s):
            self._log.acquire()
            self._is_read = True
            try:
                with private_folder(self.scratch):
                    yield
            finally:
                self._log.epoch = None

    def open(self, name: str) -> io.RawIOBase:
        """A file to seek and read in."""
        place = self._place(name)
        if place.text is not None:
            return io.BytesIO(place.text.encode())  # type: ignore[return-value]
        return Ranges(self._objects, place.key or "", place.size)

    @property
    def _places(self) -> Mapping[str, Place]:
        if not self._is_read:
            self.refresh()
        return self._log.state.files

    def _place(self, name: str) -> Place:
        try:
            return self._places[name]
        except KeyError:
            raise FileNotFoundError(f"{self.url}/{name}: there is no such file") from None

    def _uploaded(self, name: str, content: Path | bytes) -> Place:
        """Where a file is now; not named by any entry yet."""
        may_be = name.endswith(".json") and name != _NEVER_IN_LOG
        if may_be and isinstance(content, bytes) and len(content) <= _IN_LOG:
            return Place(size=len(content), text=content.decode())
        key = self._log.key_for(name)
        self._objects.put(key, content)
        if isinstance(content, bytes):
            return Place(size=len(content), key=key, sha256=hashlib.sha256(content).hexdigest())
        return Place(size=content.stat().st_size, key=key, sha256=file_digest(content))


class _Files(AbstractFileSystem):
    """The files of a dataset in a bucket, read-only, as Arrow and DuckDB ask for them."""

    cachable = False

    def __init__(self, store: BucketStore) -> None:
        super().__init__()
        self._store = store
        self.protocol = f"songmill-{store.logs.name}"  # an own one, so that a DuckDB connection may have several

    def open(self, path: str, *_: Any, **__: Any) -> io.RawIOBase:
        return self._store.open(_name(path))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = _name(path)
        return {"name": name, "size": self._store.size(name), "type": "file"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        names = self._store.names(_name(path))
        return [self.info(name) for name in names] if detail else names

    def exists(self, path: str, **_: Any) -> bool:
        return self._store.exists(_name(path))

    def glob(self, path: str, **_: Any) -> list[str]:
        return [path]  # DuckDB asks so for every single file

    def modified(self, _path: str) -> datetime:
        return datetime.fromtimestamp(0, UTC)  # an object never changes under its key


def _name(path: str) -> str:
    return path.rpartition("://")[2].strip("/")
