"""The bytes of a dataset's files, for whoever compares them with what was committed."""

import hashlib
from collections.abc import Iterator

from schemas.storage.store import Store

_CHUNK_BYTES = 8 << 20
_READS = 3  # of a file that is not what it should be: a network may have damaged it on its way


def chunks(store: Store, name: str) -> Iterator[bytes]:
    """A file in pieces.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with store.filesystem.open_input_file(name) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def is_sound(store: Store, name: str, digest: str) -> bool:
    """Whether a file has this SHA-256.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return any(_digest(store, name) == digest for _ in range(_READS))


def _digest(store: Store, name: str) -> str:
    found = hashlib.sha256()
    for chunk in chunks(store, name):
        found.update(chunk)
    return found.hexdigest()
