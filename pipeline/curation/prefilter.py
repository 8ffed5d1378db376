"""Prefilter: judge all rows at once by marks, licenses, scan measurements and duplicates, before any model runs.

This works on Arrow columns: a million rows as Python objects take gigabytes and minutes, so only rejected rows are
converted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.curation.duplicates import find_duplicates
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import NO_MARKS, Mark
from pipeline.ingest.licenses import UNKNOWN, is_allowed
from pipeline.planning.dag import Dag
from pipeline.planning.gates import Gate
from pipeline.planning.plan import Plan
from schemas import columns


def judge_scan(
    scan: pa.Table,
    dag: Dag,
    plan: Plan,
    ledger: Ledger,
    fingerprints: Callable[[pa.Table], pa.StructArray],
    marks: Mapping[str, Mark] = NO_MARKS,
    forgotten: Set[str] = frozenset(),
    missing: Set[str] = frozenset(),
) -> pa.Table:
    """Judge every row of the scan table by marks, licenses, thresholds on scan columns, and duplicates, in this order.

    Args:
        scan: the whole scan table.
        dag: has the gates.
        plan: has the licenses that are allowed and the duplicate threshold.
        ledger: rows committed as kept are preferred over later copies.
        fingerprints: returns column fingerprint for rows of the scan.
        marks: rows to drop, and rows to keep regardless of thresholds and duplicates.
        forgotten: ids of forgotten tracks, which are rejected under any uri.
        missing: ids of rows whose files are missing. A song with a file is a duplicate of such a row only if the row
            is committed as kept.

    Returns:
        The scan table with its verdicts updated and a column dedup.
    """
    scan = _judge_marks(scan, marks, forgotten)
    if plan.require_license is not None:
        scan = _judge_licenses(scan, plan.require_license)
    wanted = keepers(marks)
    for node in dag.scan:
        scan = _judge_column(scan, node.column, dag, wanted)
    return _judge_duplicates(scan, plan, ledger, fingerprints, wanted, missing)


def keepers(marks: Mapping[str, Mark]) -> frozenset[str]:
    """Ids of the rows that are marked `keep`."""
    return frozenset(row_id for row_id, mark in marks.items() if mark.mark == "keep")


def _judge_marks(scan: pa.Table, marks: Mapping[str, Mark], forgotten: Set[str]) -> pa.Table:
    dropped = {row_id: mark for row_id, mark in marks.items() if mark.mark == "drop"}

    def judged(row: dict[str, Any]) -> dict[str, Any]:
        if row["track_id"] in forgotten:
            return _filtered(row, "forget", "forgotten", "the same bytes as a track that was forgotten")
        return _filtered(row, "mark", "dropped", dropped[row["row_id"]].note or "marked by a person")

    turned_away = pc.or_(_among(scan["row_id"], dropped), _among(scan["track_id"], forgotten))
    return _judged(scan, turned_away.to_numpy(), (), judged)


def _judge_licenses(scan: pa.Table, allowed: Sequence[str]) -> pa.Table:
    refused = [text for text in scan["license"].unique().to_pylist() if not is_allowed(text, allowed)]

    def judged(row: dict[str, Any]) -> dict[str, Any]:
        license = row["license"]
        message = f"license {license or UNKNOWN} is not one of {', '.join(allowed)}"
        return _filtered(row, "license", "not_allowed" if license else UNKNOWN, message)

    turned_away = pc.and_(_is(scan, "kept"), _among(scan["license"], refused))
    return _judged(scan, turned_away.to_numpy(), ["license"], judged)


def _judge_column(scan: pa.Table, column: str, dag: Dag, wanted: Set[str]) -> pa.Table:
    """Apply a column's thresholds; they take precedence over the failure of a later stage.

    A file too long to be decoded is filtered by its length, and not failed by the next stage, which got no samples.
    """
    names = [node.name for node in dag.scan]
    later = names[[node.column for node in dag.scan].index(column) + 1 :]
    for gate in dag.gates:
        if gate.column == column:
            failed_later = pc.and_(_is(scan, "failed"), _among(pc.struct_field(scan["verdict"], "stage"), later))
            may_be_filtered = pc.and_(
                pc.or_(_is(scan, "kept"), failed_later), pc.invert(_among(scan["row_id"], wanted))
            )
            scan = _filter_by(gate, scan, may_be_filtered.to_numpy() & gate.rejected(scan[column]))
    return scan


def _filter_by(gate: Gate, scan: pa.Table, mask: np.ndarray) -> pa.Table:
    def judged(row: dict[str, Any]) -> dict[str, Any]:
        return {**row["verdict"], **gate.verdict(row[gate.column])}

    return _judged(scan, mask, [gate.column], judged)


def _judge_duplicates(
    scan: pa.Table,
    plan: Plan,
    ledger: Ledger,
    fingerprints: Callable[[pa.Table], pa.StructArray],
    wanted: Set[str],
    missing: Set[str],
) -> pa.Table:
    if plan.dedup is None:
        return scan.append_column(pa.field("dedup", columns.DEDUP), pa.nulls(scan.num_rows, columns.DEDUP))
    away = _among(scan["row_id"], missing).to_numpy()
    found = find_duplicates(scan, _is_committed(scan, ledger), fingerprints, plan.dedup.threshold, away)
    duplicates = {row["row_id"]: row for row in found.to_pylist() if row["row_id"] not in wanted}
    originals = scan.filter(_among(scan["row_id"], {row["duplicate_of"] for row in duplicates.values()}))
    uris = dict(zip(originals["row_id"].to_pylist(), originals["uri"].to_pylist(), strict=True))

    def judged(row: dict[str, Any]) -> dict[str, Any]:
        duplicate = duplicates[row["row_id"]]
        original, similarity = duplicate["duplicate_of"], duplicate["similarity"]
        message = f"duplicate of {original} ({uris[original]}), similarity {similarity:.3f}"
        return _filtered(row, "dedup", "exact_duplicate" if similarity == 1 else "near_duplicate", message)

    dedup = _dedup(scan, duplicates, f"songmill.dedup@{plan.dedup.threshold:g}")
    scan = _judged(scan, _among(scan["row_id"], duplicates).to_numpy(), (), judged)
    return scan.append_column(pa.field("dedup", columns.DEDUP), dedup)


def _is_committed(scan: pa.Table, ledger: Ledger) -> np.ndarray:
    """Whether each row is committed as kept with the same bytes as now: bool [rows]."""
    kept = {row_id: state.track_id for row_id, state in ledger.rows.items() if state.status == "kept"}
    ids = zip(scan["row_id"].to_pylist(), scan["track_id"].to_pylist(), strict=True)
    return np.array([row_id in kept and kept[row_id] == track_id for row_id, track_id in ids], bool)


def _dedup(scan: pa.Table, duplicates: Mapping[str, Mapping[str, Any]], model: str) -> pa.Array:
    """Column dedup; null for rows that were rejected for another reason."""
    count = scan.num_rows
    copies = pc.index_in(scan["row_id"], pa.array(list(duplicates), pa.string())).combine_chunks()
    fields = [
        pa.array([row[name] for row in duplicates.values()], columns.DEDUP.field(name).type).take(copies)
        for name in ("duplicate_of", "similarity")
    ]
    fields.append(pa.repeat(pa.scalar(model), count))
    return pa.StructArray.from_arrays(
        fields, fields=[*columns.DEDUP], mask=pc.invert(_is(scan, "kept")).combine_chunks()
    )


def _judged(
    scan: pa.Table,
    mask: np.ndarray,
    reads: Sequence[str],
    judged: Callable[[dict[str, Any]], dict[str, Any]],
) -> pa.Table:
    """The scan with new verdicts where the mask is true: `judged` of row_id, track_id, verdict and columns `reads`."""
    places = np.flatnonzero(mask)
    if not places.size:
        return scan
    rows = scan.select(["row_id", "track_id", "verdict", *reads]).take(places).to_pylist()
    every = pa.concat_arrays([*scan["verdict"].chunks, pa.array(map(judged, rows), columns.VERDICT)])
    order = np.arange(scan.num_rows)
    order[places] = scan.num_rows + np.arange(places.size)
    return _replace(scan, "verdict", every.take(pa.array(order)))


def _filtered(row: dict[str, Any], stage: str, reason: str, message: str) -> dict[str, Any]:
    return {**row["verdict"], "status": "filtered", "stage": stage, "reason": reason, "message": message}


def _is(scan: pa.Table, status: str) -> pa.ChunkedArray:
    return pc.equal(pc.struct_field(scan["verdict"], "status"), status)


def _among(column: pa.ChunkedArray, values: Iterable[str | None]) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array(list(values), pa.string()))


def _replace(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), values)
