"""A dataset's figures as its last run left them, for as long as nothing has been scanned or committed since.

Counting reads a few columns of every row group, ten seconds of a million rows; the records say in a fraction of one
whether that is still needed.
"""

import hashlib

from pydantic import ValidationError

from pipeline.dataset.stats import Stats, collect_stats, count_marks
from schemas.dataset import Layout
from schemas.files import write_durably

_REVISION = b"1"  # raised whenever the same dataset gives other figures


class _Snapshot(Stats):
    state: str


def current_stats(layout: Layout) -> Stats:
    """The figures of a dataset, counted anew only where they are not those of its last run.

    Raises:
        NoDataset: the folder holds none.
    """
    return _remembered(layout, _state(layout)) or collect_stats(layout)


def renew_stats(layout: Layout) -> Stats:
    """The figures of a dataset, remembered for `current_stats`; what was counted for this very state is not again."""
    state = _state(layout)  # first: what changes meanwhile makes them old
    if known := _remembered(layout, state):
        return known
    stats = collect_stats(layout)
    snapshot = _Snapshot(**stats.model_dump(), state=state)
    write_durably(layout.stats, snapshot.model_dump_json(indent=2).encode())
    return stats


def _remembered(layout: Layout, state: str) -> Stats | None:
    try:
        snapshot = _Snapshot.model_validate_json(layout.stats.read_bytes())
    except (OSError, ValidationError):  # none, or another release's
        return None
    if snapshot.state != state:
        return None
    return Stats.model_validate(snapshot.model_dump(exclude={"state"}) | {"marks": count_marks(layout)})


def _state(layout: Layout) -> str:
    """Digest of what figures rest on.

    Records name every file by its own digest. A part of the scan changes only when rows leave it, and its size with it.
    """
    digest = hashlib.blake2b(_REVISION, digest_size=16)
    for path in (*layout.state.glob("plan.json"), *sorted(layout.commits.glob("*.json"))):
        digest.update(path.name.encode() + path.read_bytes())
    for path in sorted(layout.scan.glob("part-*.parquet")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()
