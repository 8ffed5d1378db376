"""A bucket in memory, shared by several processes that may be stopped, or delayed, at any request."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from schemas.storage.objects import Found, Read

T = TypeVar("T")


class Killed(BaseException):
    """The process that had made the request is gone."""


class MemoryBucket:
    """What the server holds: key -> content, and how many requests it has seen."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}


class Client:
    """A process's `Bucket`.

    Attributes:
        kill_at: number of the request, from 1, at which the process ends.
        kill_after: whether the server still acts on it.
        between: called before request `between_at`, as when other processes are faster.
    """

    def __init__(self, server: MemoryBucket) -> None:
        self.server = server
        self.kill_at = 0
        self.kill_after = False
        self.between_at = 0
        self.between: Callable[[], None] = lambda: None

    def read(self, key: str) -> Read | None:
        def act() -> Read | None:
            content = self.server.objects.get(key)
            return None if content is None else Read(content, str(hash(content)))

        return self._request(act)

    def read_all(self, keys: Sequence[str]) -> list[bytes | None]:
        return [found and found.content for found in map(self.read, keys)]

    def list(self, prefix: str, after: str | None = None) -> Iterator[Found]:
        def act() -> list[Found]:
            return [
                Found(key, len(content))
                for key, content in sorted(self.server.objects.items())
                if key.startswith(prefix) and (after is None or key > after)
            ]

        yield from self._request(act)

    def create(self, key: str, content: bytes) -> bool:
        def act() -> bool:
            return self.server.objects.setdefault(key, content) is content

        return self._request(act)

    def swap(self, key: str, content: bytes, tag: str) -> bool:
        def act() -> bool:
            there = self.server.objects.get(key)
            if there is None or str(hash(there)) != tag:
                return False
            self.server.objects[key] = content
            return True

        return self._request(act)

    def put(self, key: str, content: bytes | Path) -> None:
        assert isinstance(content, bytes)
        self._request(lambda: self.server.objects.__setitem__(key, content))

    def delete(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            self._request(lambda key=key: self.server.objects.pop(key, None))

    def _request(self, act: Callable[[], T]) -> T:
        self.between_at -= 1
        if self.between_at == 0:
            self.between()
        self.kill_at -= 1
        if self.kill_at == 0:
            if self.kill_after:
                act()
            raise Killed
        return act()
