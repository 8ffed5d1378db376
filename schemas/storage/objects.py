"""One prefix of a bucket, through obstore: single requests whose outcome is certain.

An answer may be lost after the server has acted on the request, and obstore then repeats it: a create that was ours
comes back as "already exists". So whoever creates or swaps writes content that nobody else would write (it has a
nonce), and a refusal is settled by reading what is there.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from schemas.storage.store import MissingObjectError, StorageError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_TRIES = 6
_FIRST_WAIT_S = 0.1
_PARALLEL = 16  # requests for small objects at a time
_LISTED_AT_ONCE = 1000
_DELETED_AT_ONCE = 1000  # as many as S3 takes in a request
_TIMEOUT = "60s"  # of one request; a part of a large upload is a request of its own
_RETRIES: Any = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=20),  # of each of our tries
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
}

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """An object without its content: key below the URL, size in bytes, and what tells this version from others."""

    key: str
    size: int
    tag: str = ""


@dataclass(frozen=True)
class Read:
    """An object's content, and what tells this version of it from others."""

    content: bytes
    tag: str


class Bucket(Protocol):
    """The requests that the commit log needs, each with a certain outcome."""

    def read(self, key: str) -> Read | None:
        """An object, or None if there is none."""

    def read_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """Small objects, side by side; None for those that are not there."""

    def list(self, prefix: str, after: str | None = None) -> Iterator[Found]:
        """All objects whose keys begin with `prefix`, in the order of their keys; those behind `after` alone."""

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; whether this call did. `content` is like no other."""

    def swap(self, key: str, content: bytes, tag: str) -> bool:
        """Replace the version `tag` of an object; whether this call did. `content` is like no other."""

    def put(self, key: str, content: bytes | Path) -> None:
        """Write an object, whatever is there."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are fine."""


class Objects:
    """A `Bucket` below a URL such as `s3://bucket/folder`."""

    def __init__(self, url: str, options: Mapping[str, Any], client_options: Mapping[str, Any]) -> None:
        """Nothing is requested yet.

        Args:
            url: `s3://`, `gs://` or `az://`.
            options: of obstore's store for that scheme; no secrets, for they come from the environment.
            client_options: of its HTTP client.
        """
        self.url = url
        config: Any = dict(options)
        client: Any = {"timeout": _TIMEOUT, **client_options}
        self._store: ObjectStore = from_url(url, config=config, client_options=client, retry_config=_RETRIES)

    def read(self, key: str) -> Read | None:
        """See `Bucket`."""

        def attempt() -> Read | None:
            try:
                got = obstore.get(self._store, key)
                return Read(bytes(got.bytes()), got.meta["e_tag"] or "")
            except FileNotFoundError:
                return None

        return self._repeated(attempt, key)

    def head(self, key: str) -> Found | None:
        """An object's size and tag, or None if there is none."""

        def attempt() -> Found | None:
            try:
                return _found(obstore.head(self._store, key))
            except FileNotFoundError:
                return None

        return self._repeated(attempt, key)

    def read_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """See `Bucket`."""
        with ThreadPoolExecutor(_PARALLEL) as pool:
            return [None if found is None else found.content for found in pool.map(self.read, keys)]

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """Bytes of an object from `start` on.

        Raises:
            MissingObjectError: it is not there any more.
            StorageError: it cannot be read.
        """
        try:
            return self._repeated(lambda: bytes(obstore.get_range(self._store, key, start=start, length=length)), key)
        except FileNotFoundError:
            raise MissingObjectError(
                f"{self.url}/{key} is gone: it was replaced after it was looked up; run the command again"
            ) from None

    def list(self, prefix: str, after: str | None = None) -> Iterator[Found]:
        """See `Bucket`; a listing that breaks off goes on behind what came."""
        last, failures = after, 0
        while True:
            try:
                for chunk in obstore.list(self._store, prefix, offset=last, chunk_size=_LISTED_AT_ONCE):
                    found = [_found(meta) for meta in chunk]
                    yield from (each for each in found if last is None or each.key > last)  # Azure begins with `last`
                    last, failures = found[-1].key, 0
            except FileNotFoundError:
                return
            except BaseError as error:
                failures += 1
                if failures == _TRIES or isinstance(error, PermissionDeniedError | UnauthenticatedError):
                    raise self._failed(prefix, error) from error
                time.sleep(_FIRST_WAIT_S * 2**failures)
            else:
                return

    def create(self, key: str, content: bytes) -> bool:
        """See `Bucket`."""
        return self._settled(key, content, "create")

    def swap(self, key: str, content: bytes, tag: str) -> bool:
        """See `Bucket`."""
        return self._settled(key, content, {"e_tag": tag})

    def put(self, key: str, content: bytes | Path) -> None:
        """See `Bucket`."""
        try:
            self._repeated(lambda: obstore.put(self._store, key, content), key)
        except FileNotFoundError as error:
            raise self._bucketless(key) from error

    def delete(self, keys: Iterable[str]) -> None:
        """See `Bucket`."""
        every = list(keys)
        for first in range(0, len(every), _DELETED_AT_ONCE):
            self._repeated(partial(self._delete, every[first : first + _DELETED_AT_ONCE]), every[first])

    def _delete(self, keys: Sequence[str]) -> None:
        with suppress(FileNotFoundError):
            obstore.delete(self._store, keys)

    def _settled(self, key: str, content: bytes, mode: Any) -> bool:
        """A conditional write. A refusal and a failure alike may hide that it was done: what is there decides."""
        for wait in _waits():
            try:
                obstore.put(self._store, key, content, mode=mode, use_multipart=False)
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise self._failed(key, error) from error
            except FileNotFoundError as error:
                raise self._bucketless(key) from error
            except BaseError as error:
                there = self.read(key)
                if there is not None and there.content == content:
                    return True
                # AWS answers 409 to two creates at once, which looks like "already exists" where nothing is yet.
                is_free = there is None if mode == "create" else there is not None and there.tag == mode["e_tag"]
                if not is_free:
                    return False
                last = error
            else:
                return True
            time.sleep(wait)
        raise self._failed(key, last) from last

    def _repeated(self, attempt: Callable[[], T], key: str) -> T:
        """The result of a request that may be repeated; obstore gives up on some broken answers at once."""
        for wait in _waits():
            try:
                return attempt()
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise self._failed(key, error) from error
            except BaseError as error:
                last = error
            time.sleep(wait)
        raise self._failed(key, last) from last

    def _bucketless(self, key: str) -> StorageError:
        return StorageError(f"{self.url}/{key}: there is no such bucket; songmill does not make one")

    def _failed(self, key: str, error: BaseException) -> StorageError:
        said = str(error).split("\n\nDebug source:")[0].strip()
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            said += " (songmill takes credentials from the environment, see docs/buckets.md)"
        return StorageError(f"{self.url}/{key}: {said}")


def _found(meta: Any) -> Found:
    return Found(meta["path"], meta["size"], meta["e_tag"] or "")


def _waits() -> Iterator[float]:
    return (_FIRST_WAIT_S * 2**i for i in range(_TRIES))
