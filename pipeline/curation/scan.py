"""The first pass: decode every new file once, store identity, signal quality and fingerprint.

The scan table is a set of Parquet parts, each its own record. A row counts as scanned when the file's size and stamp
and the scan stages' fingerprints are the ones it was scanned with.
"""

import json
from collections.abc import Collection, Iterable, Set
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.curation.sink import UNIT, ScanSink, SinkSpec, write_scan_part
from pipeline.curation.sketch_reader import PART
from pipeline.curation.sketches import BANDS, with_bands
from pipeline.dataset.ledger import move_durably
from pipeline.execution.cluster import run_pass
from pipeline.execution.operator import TIMING, OperatorSpec
from pipeline.execution.run_counts import Tally
from pipeline.ingest.identity import identify
from pipeline.planning.dag import Dag
from schemas import columns
from schemas.config import ResourceConfig
from schemas.dataset import FOOTER_FINGERPRINTS, Layout, unit_of

_FILE_STATE = pa.schema([("size", pa.int64()), ("stamp", pa.string())])


def scan_schema(dag: Dag) -> pa.Schema:
    """Columns of the scan table."""
    measured = [pa.field(node.column, node.stage_type.type) for node in dag.scan]
    return pa.schema(
        [*columns.IDENTITY, *_FILE_STATE, *measured, pa.field("verdict", columns.VERDICT), pa.field("timing", TIMING)]
    )


def read_scan(layout: Layout, dag: Dag, columns: Collection[str] | None = None) -> pa.Table:
    """The scan table as far as it exists and fits the DAG; of a row scanned twice the later one.

    In place of the sketches, which are most of it, there are their `BANDS` and each row's `PART`, by which
    `pipeline.curation.sketch_reader` finds them; what the stages took stays behind.

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
    return _latest([_read_part(path, schema) for path in _valid_parts(layout, dag)], schema)


def rows_to_scan(
    manifest: pa.Table,
    scanned: pa.Table,
    committed: Set[str],
    layout: Layout,
    dag: Dag,
    missing: Set[str] = frozenset(),
) -> pa.Table:
    """Rows whose file is new or has changed since it was scanned, and those committed ones that the scan lacks.

    The latter are rows of an earlier input, last seen by a scan with other fingerprints. Rows that are `missing` are
    left as they are (see `pipeline.curation.missing`).
    """
    new = manifest.filter(pc.invert(is_unchanged(manifest, scanned)))
    new = new.filter(pc.invert(pc.is_in(new["row_id"], pa.array(missing, pa.string()))))
    known = pa.chunked_array([*scanned["row_id"].chunks, *manifest["row_id"].chunks], pa.string())
    every = pa.array(list(committed - missing), pa.string())
    lost = every.filter(pc.invert(pc.is_in(every, known)))
    if not len(lost):
        return new
    earlier = _latest([_read_part(path, new.schema) for path in _stale_parts(layout, dag)], new.schema)
    return pa.concat_tables([new, earlier.filter(pc.is_in(earlier["row_id"], lost))])


def is_unchanged(manifest: pa.Table, scanned: pa.Table) -> pa.ChunkedArray:
    """Whether each file of the manifest is the one that was scanned, by size and stamp; both may be missing."""
    places = pc.index_in(manifest["row_id"], scanned["row_id"])
    before = scanned.select(["size", "stamp"]).take(places)
    same = pc.and_(_same(manifest["size"], before["size"]), _same(manifest["stamp"], before["stamp"]))
    return pc.and_(pc.is_valid(places), same)


def known_files(layout: Layout) -> pa.Table:
    """Every file that any scan has seen, the latest last: row_id, track_id, uri, size, stamp."""
    schema = pa.schema([*(columns.IDENTITY.field(name) for name in ("row_id", "track_id", "uri")), *_FILE_STATE])
    parts = [_read_part(path, schema) for path in sorted(layout.scan.glob("part-*.parquet"))]
    return pa.concat_tables([schema.empty_table(), *parts])


def latest(scanned: pa.Table) -> pa.Table:
    """Of each row of `known_files` what was seen last."""
    return _latest([scanned], scanned.schema)


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
            move_durably(temporary, layout.scan_file(_next_unit(layout)))
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


def run_scan(
    rows: pa.Table,
    dag: Dag,
    layout: Layout,
    resources: ResourceConfig,
    tally: Tally,
    missing: Set[str] = frozenset(),
) -> None:
    """Scan these manifest rows and add them to the scan table, part by part.

    Of a scan with other fingerprints only the rows that are `missing` stay: nothing can measure them anew.
    """
    schema = scan_schema(dag)
    todo = _units(rows, _next_unit(layout), _rows_per_part(rows.num_rows, resources))
    operator = OperatorSpec(
        nodes=dag.scan,
        gates=(),  # the curation pass judges, so that other thresholds need no other scan
        carried=pa.schema([*schema, *UNIT]),
        prepare=identify,
        is_last=True,
    )
    sink = SinkSpec(layout.root, plan="scan", fingerprints=_fingerprints(dag))
    for result in run_pass(todo, [operator], ScanSink, sink, resources, tally):
        move_durably(Path(result["path"]), layout.scan_file(result["unit"]))
    for part in _stale_parts(layout, dag):  # only now: it may be the last to know a row that is no longer in the input
        gone = {*pq.read_table(part, columns=["row_id"])["row_id"].to_pylist()}
        if gone & missing:
            drop_from_scan(layout, gone - missing, [part])
        else:
            part.unlink()


def _read_part(path: Path, schema: pa.Schema) -> pa.Table:
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


def _latest(parts: list[pa.Table], schema: pa.Schema) -> pa.Table:
    table = pa.concat_tables([schema.empty_table(), *parts])
    last = {row_id: i for i, row_id in enumerate(table["row_id"].to_pylist())}
    if len(last) == table.num_rows:
        return table
    mask = np.zeros(table.num_rows, bool)
    mask[[*last.values()]] = True
    return table.filter(pa.array(mask))


def _units(rows: pa.Table, first: int, size: int) -> pa.Table:
    count = rows.num_rows
    verdict = {"status": "kept", "stage": None, "reason": None, "message": None, "attempts": 0}
    added = {
        "verdict": pa.array([verdict] * count, columns.VERDICT),
        "unit": pa.array([first + i // size for i in range(count)], pa.int64()),
        "place": pa.array([i % size for i in range(count)], pa.int64()),
        "unit_rows": pa.array([min(size, count - i // size * size) for i in range(count)], pa.int64()),
        "supersedes": pa.nulls(count, pa.int64()),
    }
    for name, values in added.items():
        rows = rows.append_column(name, values)
    return rows


def _rows_per_part(rows: int, resources: ResourceConfig) -> int:
    """Small scans are cut finer: what a killed process loses is at most one part a replica."""
    return max(1, min(resources.rows_per_scan_part, -(-rows // 8)))


def _next_unit(layout: Layout) -> int:
    return max((unit_of(path) or 0 for path in layout.scan.glob("part-*.parquet")), default=-1) + 1


def _fingerprints(dag: Dag) -> dict[str, str]:
    return {node.column: node.fingerprint for node in dag.scan}


def _valid_parts(layout: Layout, dag: Dag) -> list[Path]:
    expected = json.dumps(_fingerprints(dag), sort_keys=True).encode()
    parts = sorted(layout.scan.glob("part-*.parquet"))
    return [path for path in parts if (pq.read_metadata(path).metadata or {}).get(FOOTER_FINGERPRINTS) == expected]


def _stale_parts(layout: Layout, dag: Dag) -> list[Path]:
    valid = set(_valid_parts(layout, dag))
    return [path for path in layout.scan.glob("part-*.parquet") if path not in valid]
