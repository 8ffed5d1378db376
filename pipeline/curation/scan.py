"""The first pass: decode every new file once, store identity, signal quality and fingerprint."""

from collections.abc import Set

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.curation.sink import UNIT, ScanSink, SinkSpec
from pipeline.dataset.scan_table import (
    drop_from_scan,
    is_unchanged,
    latest,
    next_part,
    read_part,
    scan_fingerprints,
    scan_schema,
    stale_parts,
)
from pipeline.execution.cluster import run_pass
from pipeline.execution.operator import OperatorSpec
from pipeline.execution.run_counts import RunCounts
from pipeline.ingest.identity import identify
from pipeline.planning.dag import Dag
from schemas import columns
from schemas.config import ResourceConfig
from schemas.dataset import Layout
from schemas.files import move_durably


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
    parts = [read_part(path, new.schema) for path in stale_parts(layout, dag)]
    earlier = latest(pa.concat_tables([new.schema.empty_table(), *parts]))
    return pa.concat_tables([new, earlier.filter(pc.is_in(earlier["row_id"], lost))])


def run_scan(
    rows: pa.Table,
    dag: Dag,
    layout: Layout,
    resources: ResourceConfig,
    counts: RunCounts,
    missing: Set[str] = frozenset(),
) -> None:
    """Scan these manifest rows and add them to the scan table, part by part.

    Of a scan with other fingerprints only the rows that are `missing` stay: nothing can measure them anew.
    """
    schema = scan_schema(dag)
    todo = _units(rows, next_part(layout), _rows_per_part(rows.num_rows, resources))
    operator = OperatorSpec(
        nodes=dag.scan,
        gates=(),  # the curation pass judges, so that other thresholds need no other scan
        carried=pa.schema([*schema, *UNIT]),
        prepare=identify,
        is_last=True,
    )
    sink = ScanSink(SinkSpec(layout.root, plan="scan", fingerprints=scan_fingerprints(dag)))
    for part in run_pass(todo, [operator], sink, resources, counts):
        move_durably(part.path, layout.scan_file(part.number))
    for path in stale_parts(layout, dag):  # only now: it may be the last to know a row that is no longer in the input
        gone = {*pq.read_table(path, columns=["row_id"])["row_id"].to_pylist()}
        if gone & missing:
            drop_from_scan(layout, gone - missing, [path])
        else:
            path.unlink()


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
