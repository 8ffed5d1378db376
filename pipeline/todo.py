"""Decide, on the whole scan table, what becomes of every row, and cut what is to do into units."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from pipeline.dag import Dag
from pipeline.duplicates import find_duplicates
from pipeline.identity import basis
from pipeline.ledger import Commit, Ledger, RowState
from pipeline.licenses import UNKNOWN, is_allowed
from pipeline.marks import Mark
from pipeline.operator import TIMING, judge
from pipeline.plan import Plan
from pipeline.sink import UNIT
from schemas import columns
from schemas.config import ResourceConfig

NO_MARKS: Mapping[str, Mark] = MappingProxyType({})


@dataclass(frozen=True)
class Retry:
    """Rows to work on again, and no others.

    Attributes:
        row_ids: which.
        first_unit: units from this one on hold rows that have been worked on again.
    """

    row_ids: frozenset[str]
    first_unit: int


def shard_schema(dag: Dag) -> pa.Schema:
    """Columns of a shard with its features, in order: identity, what stages measured, flags, verdict."""
    measured = [pa.field(node.column, node.stage_type.type) for node in dag.nodes if not node.stage_type.scan_only]
    return pa.schema(
        [
            *columns.IDENTITY,
            *measured,
            pa.field("dedup", columns.DEDUP),
            pa.field("flags", columns.FLAGS),
            pa.field("verdict", columns.VERDICT),
        ]
    )


def todo_schema(dag: Dag) -> pa.Schema:
    """Columns of the rows that travel through the curation pass."""
    return pa.schema([*shard_schema(dag), pa.field("timing", TIMING), *UNIT])


def judge_scan(
    scan: pa.Table,
    dag: Dag,
    plan: Plan,
    ledger: Ledger,
    marks: Mapping[str, Mark] = NO_MARKS,
    forgotten: Set[str] = frozenset(),
) -> pa.Table:
    """The scan table with verdicts: what people said, licenses, thresholds on what the scan measured, duplicates.

    Args:
        scan: the whole scan table.
        dag: its gates judge.
        plan: its duplicate threshold.
        ledger: rows committed as kept win over later copies.
        marks: rows to drop, and rows that neither thresholds nor likeness turn away.
        forgotten: track ids that may not come back under another name.
    """
    scan = _judge_persons(scan, marks, forgotten)
    if plan.require_license is not None:
        scan = _judge_licenses(scan, plan.require_license)
    wanted = keepers(marks)
    for node in dag.scan:
        scan = _judge_column(scan, node.column, dag, wanted)
    return _judge_duplicates(scan, plan, ledger, wanted)


def keepers(marks: Mapping[str, Mark]) -> frozenset[str]:
    """Rows that a person wants kept."""
    return frozenset(row_id for row_id, mark in marks.items() if mark.mark == "keep")


def _judge_persons(scan: pa.Table, marks: Mapping[str, Mark], forgotten: Set[str]) -> pa.Table:
    dropped = {row_id: mark for row_id, mark in marks.items() if mark.mark == "drop"}
    if not dropped and not forgotten:
        return scan
    verdicts = scan["verdict"].to_pylist()
    ids = zip(scan["row_id"].to_pylist(), scan["track_id"].to_pylist(), strict=True)
    for verdict, (row_id, track_id) in zip(verdicts, ids, strict=True):
        if track_id in forgotten:
            message = "the same bytes as a track that was forgotten"
            verdict |= {"status": "filtered", "stage": "forget", "reason": "forgotten", "message": message}
        elif row_id in dropped:
            message = dropped[row_id].note or "marked by a person"
            verdict |= {"status": "filtered", "stage": "mark", "reason": "dropped", "message": message}
    return _replace(scan, "verdict", pa.array(verdicts, columns.VERDICT))


def _judge_licenses(scan: pa.Table, allowed: Sequence[str]) -> pa.Table:
    verdicts = scan["verdict"].to_pylist()
    for verdict, license in zip(verdicts, scan["license"].to_pylist(), strict=True):
        if verdict["status"] == "kept" and not is_allowed(license, allowed):
            reason = "not_allowed" if license else UNKNOWN
            message = f"license {license or UNKNOWN} is none of {', '.join(allowed)}"
            verdict |= {"status": "filtered", "stage": "license", "reason": reason, "message": message}
    return _replace(scan, "verdict", pa.array(verdicts, columns.VERDICT))


def _judge_column(scan: pa.Table, column: str, dag: Dag, wanted: Set[str]) -> pa.Table:
    """Apply a column's thresholds, which come before the failure of a later stage.

    A file so long that decode left it alone is filtered by its length, not failed by the stage that found no samples.
    """
    gates = [gate for gate in dag.gates if gate.column == column]
    if not gates:
        return scan  # a sketch as Python numbers takes 18 KB a song
    names = [node.name for node in dag.scan]
    later = names[[node.column for node in dag.scan].index(column) + 1 :]
    verdicts = scan["verdict"].to_pylist()
    for row_id, verdict, value in zip(scan["row_id"].to_pylist(), verdicts, scan[column].to_pylist(), strict=True):
        if row_id in wanted:
            continue
        failed_later = verdict["status"] == "failed" and verdict["stage"] in later
        judged = {**verdict, "status": "kept"} if failed_later else verdict
        judge(judged, value, gates)
        if judged["status"] == "filtered":
            verdict |= judged
    return _replace(scan, "verdict", pa.array(verdicts, columns.VERDICT))


def _judge_duplicates(scan: pa.Table, plan: Plan, ledger: Ledger, wanted: Set[str]) -> pa.Table:
    if plan.dedup is None:
        return scan.append_column(pa.field("dedup", columns.DEDUP), pa.nulls(scan.num_rows, columns.DEDUP))
    tracks = dict(zip(scan["row_id"].to_pylist(), scan["track_id"].to_pylist(), strict=True))
    committed = {
        row_id
        for row_id, state in ledger.rows.items()
        if state.status == "kept" and state.track_id == tracks.get(row_id)
    }
    found = find_duplicates(scan, committed, plan.dedup.threshold)
    duplicates = {row["row_id"]: row for row in found.to_pylist() if row["row_id"] not in wanted}
    uris = dict(zip(scan["row_id"].to_pylist(), scan["uri"].to_pylist(), strict=True))
    verdicts = scan["verdict"].to_pylist()
    dedup: list[dict[str, Any] | None] = []
    for row_id, verdict in zip(scan["row_id"].to_pylist(), verdicts, strict=True):
        if verdict["status"] != "kept":
            dedup.append(None)
            continue
        duplicate = duplicates.get(row_id, {"duplicate_of": None, "similarity": None})
        made_by = f"songmill.dedup@{plan.dedup.threshold:g}"
        dedup.append(
            {"duplicate_of": duplicate["duplicate_of"], "similarity": duplicate["similarity"], "model": made_by}
        )
        if kept := duplicate["duplicate_of"]:
            message = f"duplicate of {kept} ({uris.get(kept)}), similarity {duplicate['similarity']:.3f}"
            reason = "exact_duplicate" if duplicate["similarity"] == 1 else "near_duplicate"
            verdict |= {"status": "filtered", "stage": "dedup", "reason": reason, "message": message}
    scan = _replace(scan, "verdict", pa.array(verdicts, columns.VERDICT))
    return scan.append_column(pa.field("dedup", columns.DEDUP), pa.array(dedup, columns.DEDUP))


def units_to_do(
    judged: pa.Table,
    dag: Dag,
    plan: Plan,
    ledger: Ledger,
    resources: ResourceConfig,
    marks: Mapping[str, Mark] = NO_MARKS,
    retry: Retry | None = None,
) -> pa.Table:
    """Every row that has to pass the curation pass, with the unit it will be committed in.

    These are rows not committed yet, and whole units that were made under another plan, or in which a file, its
    identity, its mark or the song it is a copy of has changed since, or a row waits for its models. Of a `retry` these
    are the units that hold its rows. What the latter have stored is filled in by the worker
    (`pipeline.stored`).
    """
    schema = todo_schema(dag)
    # In one piece and without sketches: taking rows from many pieces copies all of them, unit after unit.
    judged = judged.select([name for name in judged.column_names if name in (*schema.names, "timing")]).combine_chunks()
    place = {row_id: i for i, row_id in enumerate(judged["row_id"].to_pylist())}
    next_unit = iter(range(ledger.next_unit, 2**62))
    tables = [schema.empty_table()]
    for commit in _asked_for(ledger, retry, place) if retry else _stale(judged, plan, ledger, marks, place):
        rows = judged.take(pa.array([place[row_id] for row_id in commit.rows], pa.int64()))
        tables.append(_as_unit(_from_scan(rows, schema), next(next_unit), commit.unit, schema))
    done = ledger.rows
    new = [i for row_id, i in place.items() if row_id not in done] if retry is None else []
    for indices in _cut(new, judged["verdict"].to_pylist(), resources.rows_per_shard):
        rows = judged.take(pa.array(indices, pa.int64()))
        tables.append(_as_unit(_from_scan(rows, schema), next(next_unit), None, schema))
    return pa.concat_tables(tables)


def _asked_for(ledger: Ledger, retry: Retry, place: Mapping[str, int]) -> list[Commit]:
    return [
        commit
        for commit in ledger.commits.values()
        if commit.unit < retry.first_unit and commit.rows.keys() & retry.row_ids and commit.rows.keys() <= place.keys()
    ]


def _stale(
    judged: pa.Table, plan: Plan, ledger: Ledger, marks: Mapping[str, Mark], place: Mapping[str, int]
) -> list[Commit]:
    bases = [basis(row) for row in judged.select([*columns.IDENTITY.names, "dedup"]).to_pylist()]
    said = {row_id: mark.mark for row_id, mark in marks.items()}

    def differs(row_id: str, row: RowState) -> bool:
        return bases[place[row_id]] != row.basis or said.get(row_id) != row.mark or row.status == "pending"

    def changed(commit: Commit) -> bool:
        return commit.plan != plan.id or any(differs(row_id, row) for row_id, row in commit.rows.items())

    return [commit for commit in ledger.commits.values() if commit.rows.keys() <= place.keys() and changed(commit)]


def _cut(indices: list[int], verdicts: list[dict[str, Any]], rows_per_shard: int) -> Iterator[list[int]]:
    """Rows still kept and rows already rejected go into units of their own, so that shards come out full."""
    kept = [i for i in indices if verdicts[i]["status"] == "kept"]
    rejected = [i for i in indices if verdicts[i]["status"] != "kept"]
    for rows in (rejected, kept):
        yield from (rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard))


def _from_scan(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of the judged scan in the shape of the curation pass."""
    flags = [_flags(license) for license in rows["license"].to_pylist()]
    rows = rows.drop_columns(["timing"]).append_column("flags", pa.array(flags, columns.FLAGS))
    arrays = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type) for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _flags(license: str | None) -> list[str]:
    return [] if license else ["license_unknown"]


def _as_unit(rows: pa.Table, unit: int, supersedes: int | None, schema: pa.Schema) -> pa.Table:
    count = rows.num_rows
    values = {
        "unit": [unit] * count,
        "place": range(count),
        "unit_rows": [count] * count,
        "supersedes": [supersedes] * count,
    }
    for name, column in values.items():
        rows = _replace(rows, name, pa.array(column, pa.int64()))
    return rows.select(schema.names)


def _replace(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), values)
