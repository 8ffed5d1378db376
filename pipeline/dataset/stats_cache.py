"""Cache of a dataset's statistics, valid until something is scanned or committed.

Computing them reads a few columns of every row group, 10 s for a million rows; checking from the commit records whether
the cache is valid takes a fraction of a second.
"""

import hashlib

from pydantic import ValidationError

from pipeline.dataset.scan_parts import scan_parts
from pipeline.dataset.stats import Stats, collect_stats, count_marks
from schemas.dataset import Layout

_REVISION = b"1"  # increment when the statistics of an unchanged dataset change


class _Snapshot(Stats):
    state: str


def current_stats(layout: Layout) -> Stats:
    """The statistics of a dataset, from the cache if it is valid.

    Raises:
        NoDataset: the folder is not a dataset.
    """
    return _cached(layout, _state(layout)) or collect_stats(layout)


def renew_stats(layout: Layout) -> Stats:
    """The statistics of a dataset, computed and cached unless the cache is valid."""
    state = _state(layout)  # before computing: later changes must invalidate the cache
    if known := _cached(layout, state):
        return known
    stats = collect_stats(layout)
    snapshot = _Snapshot(**stats.model_dump(), state=state)
    layout.store.put(layout.stats, snapshot.model_dump_json(indent=2).encode())
    return stats


def _cached(layout: Layout, state: str) -> Stats | None:
    try:
        snapshot = _Snapshot.model_validate_json(layout.store.get(layout.stats))
    except (OSError, ValidationError):  # no cache, or from another release
        return None
    if snapshot.state != state:
        return None
    return Stats.model_validate(snapshot.model_dump(exclude={"state"}) | {"marks": count_marks(layout)})


def _state(layout: Layout) -> str:
    """Digest of everything the statistics depend on.

    Commit records contain the digest of every file. A scan part changes only when rows are removed, which changes its
    size.
    """
    digest, store = hashlib.blake2b(_REVISION, digest_size=16), layout.store
    store.refresh()
    plan = [layout.plan] if store.exists(layout.plan) else []
    for name in (*plan, *(name for name in store.names(layout.commits) if name.endswith(".json"))):
        digest.update(_file_name(name).encode() + store.get(name))
    for name in scan_parts(layout):
        digest.update(f"{_file_name(name)} {store.size(name)}".encode())
    return digest.hexdigest()


def _file_name(name: str) -> str:
    return name.rpartition("/")[2]
