"""Decide, on the whole scan table, what becomes of every row, and cut what is to do into units."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dag import Dag
from pipeline.duplicates import find_duplicates
from pipeline.ledger import Commit, Ledger
from pipeline.operator import TIMING, judge
from pipeline.plan import Plan
from pipeline.sink import UNIT
from schemas import columns
from schemas.config import ResourceConfig
from schemas.dataset import FOOTER_FINGERPRINTS, Layout

_REJECTED_PER_UNIT = 1024  # rejected rows cost nothing; they need no small units


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


def judge_scan(scan: pa.Table, dag: Dag, plan: Plan, ledger: Ledger) -> pa.Table:
    """The scan table with verdicts: thresholds on what the scan measured first, then duplicates among what is left.

    Args:
        scan: the whole scan table.
        dag: its gates judge.
        plan: its duplicate threshold.
        ledger: rows committed as kept win over later copies.
    """
    for node in dag.scan:
        scan = _judge_column(scan, node.column, dag)
    if plan.dedup:
        return _judge_duplicates(scan, plan, ledger)
    return scan.append_column(pa.field("dedup", columns.DEDUP), pa.nulls(scan.num_rows, columns.DEDUP))


def _judge_column(scan: pa.Table, column: str, dag: Dag) -> pa.Table:
    """Apply a column's thresholds, which come before the failure of a later stage.

    A file so long that decode left it alone is filtered by its length, not failed by the stage that found no samples.
    """
    gates = [gate for gate in dag.gates if gate.column == column]
    names = [node.name for node in dag.scan]
    later = names[[node.column for node in dag.scan].index(column) + 1 :]
    verdicts = scan["verdict"].to_pylist()
    for verdict, value in zip(verdicts, scan[column].to_pylist(), strict=True):
        failed_later = verdict["status"] == "failed" and verdict["stage"] in later
        judged = {**verdict, "status": "kept"} if failed_later else verdict
        judge(judged, value, gates)
        if judged["status"] == "filtered":
            verdict |= judged
    return _replace(scan, "verdict", pa.array(verdicts, columns.VERDICT))


def _judge_duplicates(scan: pa.Table, plan: Plan, ledger: Ledger) -> pa.Table:
    assert plan.dedup is not None
    committed = {row_id for row_id, state in ledger.rows.items() if state.status == "kept"}
    found = find_duplicates(scan, committed, plan.dedup.threshold)
    duplicates = {row["row_id"]: row for row in found.to_pylist()}
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
    judged: pa.Table, dag: Dag, plan: Plan, ledger: Ledger, layout: Layout, resources: ResourceConfig
) -> pa.Table:
    """Every row that has to pass the curation pass, with the unit it will be committed in.

    These are rows not committed yet, and whole units that were made under another plan or from files that have
    changed since; of those, columns whose fingerprint is still the same are brought along.
    """
    schema = todo_schema(dag)
    place = {row_id: i for i, row_id in enumerate(judged["row_id"].to_pylist())}
    next_unit = iter(range(ledger.next_unit, 2**62))
    tables = [schema.empty_table()]
    for commit in _stale(ledger, plan, judged, place):
        ids = [row_id for row_id in commit.rows if row_id in place]
        rows = _from_scan(judged.take([place[row_id] for row_id in ids]), schema)
        rows = _bring_along(rows, _stored(commit, layout, dag), schema)
        tables.append(_as_unit(rows, next(next_unit), commit.unit, schema))
    done = ledger.rows
    new = [i for row_id, i in place.items() if row_id not in done]
    for indices in _cut(new, judged["verdict"].to_pylist(), resources.rows_per_shard):
        tables.append(_as_unit(_from_scan(judged.take(indices), schema), next(next_unit), None, schema))
    return pa.concat_tables(tables)


def _stale(ledger: Ledger, plan: Plan, judged: pa.Table, place: Mapping[str, int]) -> list[Commit]:
    track_ids = judged["track_id"].to_pylist()

    def changed(commit: Commit) -> bool:
        return any(track_ids[place[r]] != state.track_id for r, state in commit.rows.items() if r in place)

    return [c for c in ledger.commits.values() if c.plan != plan.id or changed(c)]


def _cut(indices: list[int], verdicts: list[dict[str, Any]], rows_per_shard: int) -> Iterator[list[int]]:
    """Rows still kept and rows already rejected go into units of their own, so that shards come out full."""
    kept = [i for i in indices if verdicts[i]["status"] == "kept"]
    rejected = [i for i in indices if verdicts[i]["status"] != "kept"]
    for rows, size in ((rejected, _REJECTED_PER_UNIT), (kept, rows_per_shard)):
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


@dataclass(frozen=True)
class _Stored:
    """Rows of an earlier unit, and which of their columns may be used again."""

    rows: Mapping[str, Mapping[str, Any]]
    columns: frozenset[str]


def _stored(commit: Commit, layout: Layout, dag: Dag) -> _Stored:
    rows: dict[str, dict[str, Any]] = {}
    fresh: frozenset[str] = frozenset(dag.fingerprints)
    for path in commit.files:
        table = pq.read_table(layout.root / path)
        made_with = (table.schema.metadata or {}).get(FOOTER_FINGERPRINTS, b"{}")
        fresh &= _same_fingerprints(made_with, dag)
        for row in table.to_pylist():
            rows.setdefault(row["row_id"], {}).update(row)
    return _Stored(rows, fresh)


def _same_fingerprints(footer: bytes, dag: Dag) -> frozenset[str]:
    stored = json.loads(footer)
    return frozenset(c for c, fingerprint in dag.fingerprints.items() if stored.get(c) == fingerprint)


def _bring_along(rows: pa.Table, stored: _Stored, schema: pa.Schema) -> pa.Table:
    track_ids = rows["track_id"].to_pylist()
    old = [stored.rows.get(row_id, {}) for row_id in rows["row_id"].to_pylist()]
    same = [row if row.get("track_id") == track else {} for row, track in zip(old, track_ids, strict=True)]
    for name in stored.columns & set(schema.names):
        if not rows[name].null_count:
            continue  # the scan has just said it
        values = [row.get(name) for row in same]
        rows = _replace(rows, name, pa.array(values, schema.field(name).type))
    return rows


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
