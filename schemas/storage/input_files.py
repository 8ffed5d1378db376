"""Songs, sidecars and manifests wherever they are, as fsspec file systems; buckets through the same client as datasets.

Of other URLs fsspec knows what its installed drivers know.
"""

import io
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec import AbstractFileSystem

from schemas.storage.objects import Found, Objects
from schemas.storage.options import StorageOptions, scheme
from schemas.storage.ranges import Ranges

_WHOLE_BYTES = 64 << 20  # an object up to this size is read by a single request
_BUFFER_BYTES = 4 << 20


def file_system(uri: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URI, and the path in it.

    Raises:
        ImportError: the URL's driver is not installed.
        ValueError: nobody knows such a URL.
    """
    kind = scheme(uri)
    if kind is None:
        return fsspec.url_to_fs(uri)  # type: ignore[no-any-return]
    if "@" in urlsplit(uri).netloc:
        raise ValueError("credentials have no place in a URL; songmill takes them from the environment")
    return _buckets(uri.partition("://")[0]), uri.partition("://")[2].rstrip("/")


@cache
def _buckets(protocol: str) -> "Buckets":
    return Buckets(protocol)


class Buckets(AbstractFileSystem):
    """The buckets of one kind, read-only; a path is the bucket's name and the object's key."""

    cachable = False

    def __init__(self, protocol: str) -> None:
        super().__init__()
        self.protocol = protocol
        self._opened: dict[str, Objects] = {}
        self._last: tuple[tuple[str, str], bytes] | None = None  # the digest, the tags and the sound are read in turn

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and etag of an object, or that it is a folder.

        Raises:
            FileNotFoundError: it is neither.
        """
        bucket, key = self._split(path)
        if key and (found := self._objects(bucket).head(key)):
            return _info(bucket, found)
        if next(self._objects(bucket).list(key), None):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(f"{self.protocol}://{path}: there is no such file or folder")

    def find(self, path: str, *_: Any, detail: bool = False, **__: Any) -> Any:
        """All objects below a path, by one listing, however many folders there are."""
        bucket, key = self._split(path)
        infos = {f"{bucket}/{found.key}": _info(bucket, found) for found in self._objects(bucket).list(key)}
        return infos if detail else [*infos]

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """As `find`."""
        infos = self.find(path, detail=True)
        return [*infos.values()] if detail else [*infos]

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        """An object, to be read.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it cannot be read.
        """
        if mode != "rb":
            raise ValueError("buckets are only read here")
        bucket, key = self._split(path)
        objects = self._objects(bucket)
        found = objects.head(key)
        if found is None:
            raise FileNotFoundError(f"{self.protocol}://{path}: there is no such file")
        if found.size > _WHOLE_BYTES:
            return io.BufferedReader(Ranges(objects, key, found.size), _BUFFER_BYTES)
        if self._last is None or self._last[0] != (path, found.tag) or not found.tag:
            self._last = None  # free it first
            self._last = (path, found.tag), Ranges(objects, key, found.size).read()
        return io.BytesIO(self._last[1])

    def _split(self, path: str) -> tuple[str, str]:
        bucket, _, key = path.rpartition("://")[2].strip("/").partition("/")
        return bucket, key

    def _objects(self, bucket: str) -> Objects:
        if bucket not in self._opened:
            url, options = f"{self.protocol}://{bucket}", StorageOptions()
            self._opened[bucket] = Objects(url, options.of_store(url), options.of_client())
        return self._opened[bucket]


def _info(bucket: str, found: Found) -> dict[str, Any]:
    return {"name": f"{bucket}/{found.key}", "size": found.size, "type": "file", "etag": found.tag}
