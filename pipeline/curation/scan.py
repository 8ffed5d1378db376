"""The scan pass: decode every new file once and store its identity, signal quality and fingerprint."""

from collections.abc import Set

import pyarrow as pa
import pyarrow.compute as pc

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
from schemas.storage.parquet import read_parquet


def rows_to_scan(
    manifest: pa.Table,
    scanned: pa.Table,
    committed: Set[str],
    layout: Layout,
    dag: Dag,
    missing: Set[str] = frozenset(),
) -> pa.Table:
    """Rows whose file is new or has changed since it was scanned, and committed rows that are not in the valid scan.

    The latter are rows of an earlier input whose last scan had other fingerprints.

    Args:
        manifest: the current input.
        scanned: columns row_id, size and stamp of the valid scan table.
        committed: ids of all committed rows.
        layout: the dataset.
        dag: has the scan stages.
        missing: ids of rows whose files are missing; these are not scanned (see `pipeline.curation.missing`).
    """
    new = manifest.filter(pc.invert(is_unchanged(manifest, scanned)))
    new = new.filter(pc.invert(pc.is_in(new["row_id"], pa.array(missing, pa.string()))))
    known = pa.chunked_array([*scanned["row_id"].chunks, *manifest["row_id"].chunks], pa.string())
    every = pa.array(list(committed - missing), pa.string())
    lost = every.filter(pc.invert(pc.is_in(every, known)))
    if not len(lost):
        return new
    parts = [read_part(layout, name, new.schema) for name in stale_parts(layout, dag)]
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
    """Scan manifest rows and add them to the scan table, part by part.

    Afterwards parts with other fingerprints are deleted, except for `missing` rows, which cannot be measured again.
    """
    schema = scan_schema(dag)
    todo = _units(rows, next_part(layout), _rows_per_part(rows.num_rows, resources))
    operator = OperatorSpec(
        nodes=dag.scan,
        gates=(),  # thresholds are applied later, so that changing them needs no new scan
        carried=pa.schema([*schema, *UNIT]),
        prepare=identify,
        is_last=True,
    )
    sink = ScanSink(SinkSpec(layout, plan="scan", fingerprints=scan_fingerprints(dag)))
    for part in run_pass(todo, [operator], sink, resources, counts):
        layout.store.publish({layout.scan_file(part.number): part.path})
    for name in stale_parts(layout, dag):  # last: a part may be the only record of rows not in the input
        gone = {*read_parquet(layout.store, name, ["row_id"])["row_id"].to_pylist()}
        if gone & missing:
            drop_from_scan(layout, gone - missing, [name])
        else:
            layout.store.publish({}, [name])


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
    """Small scans get smaller parts: a killed process loses at most one part per replica."""
    return max(1, min(resources.rows_per_scan_part, -(-rows // 8)))
