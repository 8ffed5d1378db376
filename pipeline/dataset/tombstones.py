"""Tombstones: forgotten rows that may not come back, identified only by the hashes of their uri and bytes."""

from collections.abc import Iterable, Mapping, Set
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.shard_files import in_memory
from schemas.dataset import Layout
from schemas.tables import TOMBSTONES


def read_tombstones(layout: Layout) -> pa.Table:
    """All tombstones, a table of schema `TOMBSTONES`."""
    if not layout.store.exists(layout.tombstones):
        return TOMBSTONES.empty_table()
    return pq.read_table(layout.tombstones, schema=TOMBSTONES, filesystem=layout.store.filesystem)


def bury(layout: Layout, tracks: Mapping[str, str | None], reason: str | None) -> None:
    """Add tombstones.

    Args:
        layout: the dataset.
        tracks: row id -> track id, of the forgotten rows.
        reason: stored with each tombstone.
    """
    there = read_tombstones(layout)
    known, now = {*there["row_id"].to_pylist()}, datetime.now(UTC)
    new = [
        {"row_id": row_id, "track_id": track_id, "reason": reason, "forgotten_at": now}
        for row_id, track_id in tracks.items()
        if row_id not in known
    ]
    _write(layout, pa.concat_tables([there, pa.Table.from_pylist(new, TOMBSTONES)]))


def unbury(layout: Layout, ids: Iterable[str]) -> int:
    """Remove the tombstones with these row or track ids; returns their number."""
    there, wanted = read_tombstones(layout), pa.array([*ids], pa.string())
    gone = pc.or_(pc.is_in(there["row_id"], wanted), pc.fill_null(pc.is_in(there["track_id"], wanted), False))
    _write(layout, there.filter(pc.invert(gone)))
    return int(pc.sum(gone).as_py() or 0)


def forgotten_tracks(tombstones: pa.Table) -> Set[str]:
    """Ids of the forgotten tracks, which may not come back under any uri."""
    return {*tombstones["track_id"].drop_null().to_pylist()}


def without_forgotten(rows: pa.Table, tombstones: pa.Table) -> pa.Table:
    """Rows of a manifest or a scan table without the forgotten ones."""
    return rows.filter(pc.invert(pc.is_in(rows["row_id"], tombstones["row_id"].combine_chunks())))


def _write(layout: Layout, table: pa.Table) -> None:
    layout.store.publish({layout.tombstones: in_memory(table)})
