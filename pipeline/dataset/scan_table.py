"""The scan table: what is known of every file that was ever read, as Parquet parts of which each is its own record.

A row counts as scanned when the file's size and stamp and the scan stages' fingerprints are the ones it was scanned
with.
"""

import json
from collections.abc import Collection, Iterable, Set
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.shard_files import write_scan_part
from pipeline.dataset.sketch_reader import PART
from pipeline.dataset.sketches import BANDS, with_bands
from pipeline.planning.dag import Dag
from schemas import columns
from schemas.dataset import FOOTER_FINGERPRINTS, Layout, unit_of
from schemas.files import move_durably

_FILE_STATE = pa.schema([("size", pa.int64()), ("stamp", pa.string())])


def scan_schema(dag: Dag) -> pa.Schema:
    """Columns of the scan table."""
    measured = [pa.field(node.column, node.stage_type.type) for node in dag.scan]
    return pa.schema(
        [
            *columns.IDENTITY,
            *_FILE_STATE,
            *measured,
            pa.field("verdict", columns.VERDICT),
            pa.field("timing", columns.TIMING),
        ]
    )


def read_scan(layout: Layout, dag: Dag, columns: Collection[str] | None = None) -> pa.Table:
    """The scan table as far as it exists and fits the DAG; of a row scanned twice the later one.

    In place of the sketches, which are most of it, there are their `BANDS` and each row's `PART`, by which
    `pipeline.dataset.sketch_reader` finds them; what the stages took stays behind.

    Args:
        layout: the dataset.
        dag: its scan stages.
        columns: those to read, row_id among them; default all.
    """
    schema = pa.schema(
        [*(field for field in scan_schema(dag) if field.name not in ("fingerprint", "timing")), BANDS, PART]
    )
    if columns is not None:
        schema = pa.schema([field for field in schema if field.name in columns])
    parts = [read_part(path, schema) for path in _valid_parts(layout, dag)]
    return latest(pa.concat_tables([schema.empty_table(), *parts]))


def is_unchanged(manifest: pa.Table, scanned: pa.Table) -> pa.ChunkedArray:
    """Whether each file of the manifest is the one that was scanned, by size and stamp; both may be missing."""
    places = pc.index_in(manifest["row_id"], scanned["row_id"])
    before = scanned.select(["size", "stamp"]).take(places)
    same = pc.and_(_same(manifest["size"], before["size"]), _same(manifest["stamp"], before["stamp"]))
    return pc.and_(pc.is_valid(places), same)


def known_files(layout: Layout) -> pa.Table:
    """Every file that any scan has seen, the latest last: row_id, track_id, uri, size, stamp."""
    schema = pa.schema([*(columns.IDENTITY.field(name) for name in ("row_id", "track_id", "uri")), *_FILE_STATE])
    parts = [read_part(path, schema) for path in sorted(layout.scan.glob("part-*.parquet"))]
    return pa.concat_tables([schema.empty_table(), *parts])


def scan_by_content(layout: Layout, dag: Dag, found: pa.Table) -> None:
    """Add files to the scan table whose very bytes it has under another row: what it measured holds for them too.

    Args:
        layout: the dataset.
        dag: its scan stages. Rows that a scan with other fingerprints has seen are no source.
        found: identity columns, size and stamp of each file. Files with bytes that the scan does not know are left out.
    """
    for path in _valid_parts(layout, dag):
        rows = pq.read_table(path)
        places = pc.index_in(found["track_id"], rows["track_id"].combine_chunks())
        here = pc.and_(pc.is_valid(places), pc.is_valid(found["track_id"]))
        if pc.any(here).as_py():
            copies = rows.take(places.filter(here))
            for field in [*columns.IDENTITY, *_FILE_STATE]:
                values = found[field.name].filter(here).cast(field.type)
                copies = copies.set_column(
                    copies.column_names.index(field.name), copies.schema.field(field.name), values
                )
            temporary = layout.temporary / "by-content.parquet"
            write_scan_part(copies, temporary, rows.schema.metadata or {})
            move_durably(temporary, layout.scan_file(next_part(layout)))
            found = found.filter(pc.invert(here))


def _same(values: pa.ChunkedArray, before: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(values, before), pc.and_(pc.is_null(values), pc.is_null(before)))


def failed_in_scan(layout: Layout, dag: Dag) -> Set[str]:
    """Rows that the scan could not measure."""
    scan = read_scan(layout, dag, ("row_id", "verdict"))
    failed = pc.equal(pc.struct_field(scan["verdict"], "status"), "failed")
    return {*scan.filter(failed)["row_id"].to_pylist()}


def scanned_tracks(layout: Layout) -> dict[str, str | None]:
    """Row id -> track id of every row that any scan has seen."""
    parts = [pq.read_table(path, columns=["row_id", "track_id"]) for path in sorted(layout.scan.glob("part-*.parquet"))]
    return {row["row_id"]: row["track_id"] for part in parts for row in part.to_pylist()}


def drop_from_scan(layout: Layout, row_ids: Set[str], parts: Iterable[Path] | None = None) -> None:
    """Take rows out of the scan table, or of some of its parts, as if they had never been read, part by part."""
    gone = pa.array(row_ids, pa.string())
    for path in sorted(layout.scan.glob("part-*.parquet")) if parts is None else parts:
        held = pc.is_in(pq.read_table(path, columns=["row_id"])["row_id"], gone)
        if pc.any(held).as_py():
            rows = pq.read_table(path)
            temporary = layout.temporary / f"{path.name}.tmp"
            write_scan_part(rows.filter(pc.invert(held)), temporary, rows.schema.metadata or {})
            move_durably(temporary, path)


def read_part(path: Path, schema: pa.Schema) -> pa.Table:
    """These columns of a part, null where it has none: parts outlive releases."""
    file = pq.ParquetFile(path)
    there = file.schema_arrow.names
    part = file.read(columns=[name for name in schema.names if name in there])
    if BANDS.name in schema.names and BANDS.name not in there and "fingerprint" in there:
        part = part.append_column(BANDS, with_bands(file.read(columns=["fingerprint"]))[BANDS.name])
    if PART.name in schema.names:
        part = part.append_column(PART, pa.array([unit_of(path)] * part.num_rows, PART.type))
    arrays = [
        part[field.name] if field.name in part.column_names else pa.nulls(part.num_rows, field.type) for field in schema
    ]
    return pa.table(arrays, schema.names).cast(schema)


def latest(table: pa.Table) -> pa.Table:
    """Of each row of a scan what was seen last."""
    last = {row_id: i for i, row_id in enumerate(table["row_id"].to_pylist())}
    if len(last) == table.num_rows:
        return table
    mask = np.zeros(table.num_rows, bool)
    mask[[*last.values()]] = True
    return table.filter(pa.array(mask))


def next_part(layout: Layout) -> int:
    """A number that no part has."""
    return max((unit_of(path) or 0 for path in layout.scan.glob("part-*.parquet")), default=-1) + 1


def scan_fingerprints(dag: Dag) -> dict[str, str]:
    """Column -> fingerprint of the scan stage that makes it."""
    return {node.column: node.fingerprint for node in dag.scan}


def _valid_parts(layout: Layout, dag: Dag) -> list[Path]:
    expected = json.dumps(scan_fingerprints(dag), sort_keys=True).encode()
    parts = sorted(layout.scan.glob("part-*.parquet"))
    return [path for path in parts if (pq.read_metadata(path).metadata or {}).get(FOOTER_FINGERPRINTS) == expected]


def stale_parts(layout: Layout, dag: Dag) -> list[Path]:
    """Parts of a scan with other fingerprints."""
    valid = set(_valid_parts(layout, dag))
    return [path for path in layout.scan.glob("part-*.parquet") if path not in valid]
