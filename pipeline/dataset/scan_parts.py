"""The parts of the scan table, read side by side: in a bucket one waits for requests more than for bytes."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from schemas.dataset import Layout, unit_of

_READERS = 8

T = TypeVar("T")


def scan_parts(layout: Layout) -> list[str]:
    """Names of all parts of the scan table, in order."""
    return [name for name in layout.store.names(layout.scan) if unit_of(name) is not None]


def of_each_part(read: Callable[[str], T], parts: Iterable[str]) -> list[T]:
    """What a function makes of each part, in order; it is called from several threads."""
    with ThreadPoolExecutor(_READERS) as pool:
        return [*pool.map(read, parts)]
