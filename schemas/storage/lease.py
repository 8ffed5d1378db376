"""Says that somebody is writing a dataset in a bucket, so that a second writer does not begin in vain.

Nothing rests on it: the commit log is safe with any number of writers, of which all but the last stop. No clocks are
compared: a lease is alive if it changes while one watches it.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from schemas.storage.objects import Bucket, Read, StorageError
from schemas.storage.store import StoreBusy

_KEY = "_songmill/lease.json"
_MISSED = 3  # beats that a lease may miss before it counts as that of a dead process


@contextmanager
def lease(bucket: Bucket, url: str, beat_s: float) -> Iterator[None]:
    """Hold the lease.

    Args:
        bucket: of the dataset.
        url: of the dataset, for messages.
        beat_s: seconds between two beats. A newcomer waits three of them for a process that was killed.

    Raises:
        StoreBusy: another process holds it.
    """
    there = _watched(bucket, url, beat_s)
    if not _take(bucket, there):
        raise StoreBusy(f"{url}: another songmill process has begun to write this dataset; wait for it")
    over = threading.Event()
    beats = threading.Thread(target=_beat, args=(bucket, beat_s, over), name="lease", daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        _release(bucket)


def _beat(bucket: Bucket, beat_s: float, over: threading.Event) -> None:
    """Renew the lease until it is over or somebody else's; the log then stops this writer."""
    while not over.wait(beat_s):
        try:
            held = bucket.read(_KEY)
            if held is None or not _is_mine(held) or not bucket.swap(_KEY, _body(_ME), held.tag):
                return
        except StorageError:  # out of reach: a newcomer may take the lease, and the log sees to the rest
            continue


def _watched(bucket: Bucket, url: str, beat_s: float) -> Read | None:
    """The lease, which nobody holds or which has stopped beating.

    Raises:
        StoreBusy: it changed while it was watched.
    """
    first = now = bucket.read(_KEY)
    deadline = time.monotonic() + _MISSED * beat_s
    while first is not None and now is not None and (owner := _owner(now)) and time.monotonic() < deadline:
        if now.content != first.content:
            raise StoreBusy(f"{url}: another songmill process ({owner}) is writing this dataset; wait for it")
        time.sleep(beat_s / 2)
        now = bucket.read(_KEY)
    return now


def _take(bucket: Bucket, there: Read | None) -> bool:
    return bucket.create(_KEY, _body(_ME)) if there is None else bucket.swap(_KEY, _body(_ME), there.tag)


def _release(bucket: Bucket) -> None:
    with suppress(StorageError):  # it is left to run out
        held = bucket.read(_KEY)
        if held is not None and _is_mine(held):
            bucket.swap(_KEY, _body(None), held.tag)


_ME = {"host": socket.gethostname(), "pid": os.getpid(), "start": secrets.token_hex(8)}


def _body(owner: dict[str, Any] | None) -> bytes:
    return json.dumps({"owner": owner, "nonce": secrets.token_hex(8)}).encode()


def _owner(held: Read) -> str | None:
    """Host and process, if anybody holds it."""
    owner = json.loads(held.content)["owner"]
    return f"process {owner['pid']} on {owner['host']}" if owner else None


def _is_mine(held: Read) -> bool:
    return bool(json.loads(held.content)["owner"] == _ME)
