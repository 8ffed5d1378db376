"""The scan table: measurements of every file that was ever read, as Parquet parts that need no commit records.

A row is up to date if the file's size and stamp and the scan stages' fingerprints are unchanged since it was scanned.
"""

import json
from collections.abc import Collection, Iterable, Set

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.scan_parts import of_each_part, scan_parts
from pipeline.dataset.shard_files import write_scan_part
from pipeline.dataset.sketch_reader import PART
from pipeline.dataset.sketches import BANDS, with_bands
from pipeline.planning.dag import Dag
from schemas import columns
from schemas.dataset import FOOTER_FINGERPRINTS, Layout, unit_of
from schemas.storage.parquet import open_parquet, read_parquet, schema_of

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
    """The parts of the scan table that match the DAG's fingerprints; for a row scanned twice, the later entry.

    Column fingerprint, which is most of the data, is replaced by `BANDS` and `PART`; `pipeline.dataset.sketch_reader`
    reads sketches by `PART`. Column timing is left out.

    Args:
        layout: the dataset.
        dag: has the scan stages.
        columns: columns to read, which must include row_id; default: all.
    """
    schema = pa.schema(
        [*(field for field in scan_schema(dag) if field.name not in ("fingerprint", "timing")), BANDS, PART]
    )
    if columns is not None:
        schema = pa.schema([field for field in schema if field.name in columns])
    parts = of_each_part(lambda name: read_part(layout, name, schema), _valid_parts(layout, dag))
    return latest(pa.concat_tables([schema.empty_table(), *parts]))


def is_unchanged(manifest: pa.Table, scanned: pa.Table) -> pa.ChunkedArray:
    """Whether each file of the manifest has the same size and stamp as in the scan, null equal to null: bool [rows]."""
    places = pc.index_in(manifest["row_id"], scanned["row_id"])
    before = scanned.select(["size", "stamp"]).take(places)
    same = pc.and_(_same(manifest["size"], before["size"]), _same(manifest["stamp"], before["stamp"]))
    return pc.and_(pc.is_valid(places), same)


def known_files(layout: Layout) -> pa.Table:
    """Every file that any scan has seen, in scan order: columns row_id, track_id, uri, size (bytes), stamp."""
    schema = pa.schema([*(columns.IDENTITY.field(name) for name in ("row_id", "track_id", "uri")), *_FILE_STATE])
    parts = of_each_part(lambda name: read_part(layout, name, schema), scan_parts(layout))
    return pa.concat_tables([schema.empty_table(), *parts])


def scan_by_content(layout: Layout, dag: Dag, found: pa.Table) -> None:
    """Add files to the scan table by copying the measurements of a row with the same bytes.

    Args:
        layout: the dataset.
        dag: has the scan stages. Parts with other fingerprints are not used.
        found: identity columns, size and stamp of each file. Files whose bytes are not in the scan table are ignored.
    """
    for name in _valid_parts(layout, dag):
        rows = read_parquet(layout.store, name)
        places = pc.index_in(found["track_id"], rows["track_id"].combine_chunks())
        here = pc.and_(pc.is_valid(places), pc.is_valid(found["track_id"]))
        if pc.any(here).as_py():
            copies = rows.take(places.filter(here))
            for field in [*columns.IDENTITY, *_FILE_STATE]:
                values = found[field.name].filter(here).cast(field.type)
                copies = copies.set_column(
                    copies.column_names.index(field.name), copies.schema.field(field.name), values
                )
            temporary = layout.store.scratch / "by-content.parquet"
            write_scan_part(copies, temporary, rows.schema.metadata or {})
            layout.store.publish({layout.scan_file(next_part(layout)): temporary})
            found = found.filter(pc.invert(here))


def _same(values: pa.ChunkedArray, before: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(values, before), pc.and_(pc.is_null(values), pc.is_null(before)))


def failed_in_scan(layout: Layout, dag: Dag) -> Set[str]:
    """Ids of the rows that failed in the scan."""
    scan = read_scan(layout, dag, ("row_id", "verdict"))
    failed = pc.equal(pc.struct_field(scan["verdict"], "status"), "failed")
    return {*scan.filter(failed)["row_id"].to_pylist()}


def scanned_tracks(layout: Layout) -> dict[str, str | None]:
    """Row id -> track id of every row that any scan has seen."""
    names = ["row_id", "track_id"]
    parts = of_each_part(lambda part: read_parquet(layout.store, part, names), scan_parts(layout))
    return {row["row_id"]: row["track_id"] for part in parts for row in part.to_pylist()}


def drop_from_scan(layout: Layout, row_ids: Set[str], parts: Iterable[str] | None = None) -> None:
    """Remove rows from the scan table, or from the given parts of it, so that they count as never scanned."""
    gone, wanted = pa.array(row_ids, pa.string()), scan_parts(layout) if parts is None else [*parts]
    if not row_ids:
        return
    held = of_each_part(lambda part: pc.is_in(read_parquet(layout.store, part, ["row_id"])["row_id"], gone), wanted)
    for name, is_gone in zip(wanted, held, strict=True):
        if pc.any(is_gone).as_py():
            rows = read_parquet(layout.store, name)
            temporary = layout.store.scratch / "dropped.parquet"
            write_scan_part(rows.filter(pc.invert(is_gone)), temporary, rows.schema.metadata or {})
            layout.store.publish({name: temporary})


def read_part(layout: Layout, name: str, schema: pa.Schema) -> pa.Table:
    """Read columns of a part; columns it lacks are null, since it may be from an earlier release."""
    with open_parquet(layout.store, name) as file:
        there = file.schema_arrow.names
        part = file.read(columns=[column for column in schema.names if column in there])
        if BANDS.name in schema.names and BANDS.name not in there and "fingerprint" in there:
            part = part.append_column(BANDS, with_bands(file.read(columns=["fingerprint"]))[BANDS.name])
    if PART.name in schema.names:
        part = part.append_column(PART, pa.array([unit_of(name)] * part.num_rows, PART.type))
    arrays = [
        part[field.name] if field.name in part.column_names else pa.nulls(part.num_rows, field.type) for field in schema
    ]
    return pa.table(arrays, schema.names).cast(schema)


def latest(table: pa.Table) -> pa.Table:
    """The last entry of each row id."""
    last = {row_id: i for i, row_id in enumerate(table["row_id"].to_pylist())}
    if len(last) == table.num_rows:
        return table
    mask = np.zeros(table.num_rows, bool)
    mask[[*last.values()]] = True
    return table.filter(pa.array(mask))


def next_part(layout: Layout) -> int:
    """The next free part number."""
    return max((unit_of(name) or 0 for name in scan_parts(layout)), default=-1) + 1


def scan_fingerprints(dag: Dag) -> dict[str, str]:
    """Column -> fingerprint of the scan stage that writes it."""
    return {node.column: node.fingerprint for node in dag.scan}


def _valid_parts(layout: Layout, dag: Dag) -> list[str]:
    expected = json.dumps(scan_fingerprints(dag), sort_keys=True).encode()
    parts = scan_parts(layout)
    found = of_each_part(lambda name: schema_of(layout.store, name).metadata or {}, parts)
    return [name for name, footer in zip(parts, found, strict=True) if footer.get(FOOTER_FINGERPRINTS) == expected]


def stale_parts(layout: Layout, dag: Dag) -> list[str]:
    """Names of the parts with other fingerprints than the DAG's scan stages."""
    valid = set(_valid_parts(layout, dag))
    return [name for name in scan_parts(layout) if name not in valid]
