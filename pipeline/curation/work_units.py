"""Select the rows of the prefiltered scan that the curation pass has to process, grouped into units to commit."""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.curation.sink import UNIT
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import NO_MARKS, Mark
from pipeline.dataset.sketch_reader import PART
from pipeline.ingest.identity import basis
from pipeline.planning.dag import Dag
from pipeline.planning.plan import Plan
from schemas import columns
from schemas.commits import Commit
from schemas.config import ResourceConfig

_PIECE = 50_000  # rows that are converted to Python objects, or copied, at a time


def shard_schema(dag: Dag) -> pa.Schema:
    """Columns of a shard with its features, in order: identity, stage columns, dedup, flags, verdict."""
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
    """Columns of the rows in the curation pass."""
    return pa.schema([*shard_schema(dag), pa.field("timing", columns.TIMING), *UNIT])


def units_to_do(
    judged: pa.Table,
    dag: Dag,
    plan: Plan,
    ledger: Ledger,
    resources: ResourceConfig,
    marks: Mapping[str, Mark] = NO_MARKS,
    retry: Set[str] | None = None,
    waiting: Set[str] = frozenset(),
) -> pa.Table:
    """The rows that the curation pass has to process, each with the unit it will be committed in.

    These are the rows that are not committed yet and all rows of stale units (see `stale_units`), whose stored columns
    the worker fills in (see `pipeline.curation.reuse`).

    Args:
        judged: the prefiltered scan table.
        dag: the DAG of this run.
        plan: the plan of this run.
        ledger: the dataset's commits.
        resources: has the number of rows per shard.
        marks: the users' marks.
        retry: if given, only the units with these rows are processed.
        waiting: ids of rows that wait for their files.

    Returns:
        Table of schema `todo_schema` plus `PART`, sorted by unit.
    """
    schema = pa.schema([*todo_schema(dag), PART])
    place = {row_id: i for i, row_id in enumerate(judged["row_id"].to_pylist())}
    units: list[tuple[int | None, list[int]]] = []
    for commit in stale_units(judged, plan, ledger, marks, retry, waiting):
        if commit.rows.keys() <= place.keys():
            units.append((commit.unit, [place[row_id] for row_id in commit.rows]))
    if retry is None:
        done = ledger.rows
        new = [i for row_id, i in place.items() if row_id not in done]
        units += [(None, rows) for rows in _cut(new, _is_kept(judged), resources.rows_per_shard)]
    return _numbered(judged, units, ledger.next_unit, schema)


def stale_units(
    judged: pa.Table,
    plan: Plan,
    ledger: Ledger,
    marks: Mapping[str, Mark],
    retry: Set[str] | None,
    waiting: Set[str] = frozenset(),
) -> list[Commit]:
    """Units that have to be recomputed.

    A unit is stale if it was made with another plan, or if for one of its rows the file, an identity column, the mark
    or the song it is a duplicate of has changed, or if a row is pending. With `retry`, the stale units are those with
    these rows. Rows that are `waiting` for their files (see `pipeline.curation.missing`) do not make a unit stale.
    """
    if not ledger.commits:
        return []
    if retry is not None:
        return [commit for commit in ledger.commits.values() if not (retry - waiting).isdisjoint(commit.rows)]
    differing = _differing(judged, ledger, marks)

    def stale(commit: Commit) -> bool:
        rows = commit.rows.keys() - waiting
        return bool(rows) and (commit.plan != plan.id or not differing.isdisjoint(rows))

    return [commit for commit in ledger.commits.values() if stale(commit)]


def _differing(judged: pa.Table, ledger: Ledger, marks: Mapping[str, Mark]) -> Set[str]:
    """Ids of committed rows that have changed since, or are pending."""
    rows, mark_of = ledger.rows, {row_id: mark.mark for row_id, mark in marks.items()}

    def differs(row: Mapping[str, Any]) -> bool:
        state = rows.get(row["row_id"])
        return state is not None and (
            basis(row) != state.basis or mark_of.get(row["row_id"]) != state.mark or state.status == "pending"
        )

    facts = judged.select([*columns.IDENTITY.names, "dedup"])
    return {row["row_id"] for piece in facts.to_batches(_PIECE) for row in piece.to_pylist() if differs(row)}


def _is_kept(judged: pa.Table) -> np.ndarray:
    return pc.equal(pc.struct_field(judged["verdict"], "status"), "kept").to_numpy()


def _cut(rows: list[int], kept: np.ndarray, rows_per_shard: int) -> Iterator[list[int]]:
    """Split rows into units: rows kept so far and rows already rejected go into separate units, to fill the shards."""
    for alike in ([i for i in rows if not kept[i]], [i for i in rows if kept[i]]):
        yield from (alike[start : start + rows_per_shard] for start in range(0, len(alike), rows_per_shard))


def _numbered(
    judged: pa.Table, units: Sequence[tuple[int | None, list[int]]], first: int, schema: pa.Schema
) -> pa.Table:
    """Rows of the prefiltered scan with the columns of the curation pass, unit by unit, numbered from `first`."""
    rows = np.array([i for _, rows in units for i in rows], np.int64)
    sizes = np.array([len(rows) for _, rows in units], np.int64)
    starts = np.cumsum(sizes) - sizes
    replaced = [old for (old, _), size in zip(units, sizes.tolist(), strict=True) for _ in range(size)]
    numbers = {
        "unit": np.repeat(first + np.arange(len(units)), sizes),
        "place": np.arange(len(rows)) - np.repeat(starts, sizes),
        "unit_rows": np.repeat(sizes, sizes),
        "supersedes": pa.array(replaced, pa.int64()),
    }
    result = pa.concat_tables([schema.empty_table(), *(_from_scan(piece, schema) for piece in _taken(judged, rows))])
    for name, values in numbers.items():
        result = result.set_column(schema.get_field_index(name), schema.field(name), pa.array(values, pa.int64()))
    return result


def _taken(table: pa.Table, rows: np.ndarray) -> Iterator[pa.Table]:
    """Yield these rows in pieces: one `take` of all would copy the table, and the lyrics of a million songs overflow
    one array.
    """
    for start in range(0, len(rows), _PIECE):
        piece = rows[start : start + _PIECE]
        mask = np.zeros(table.num_rows, bool)
        mask[piece] = True
        yield table.filter(pa.array(mask)).combine_chunks().take(np.searchsorted(np.sort(piece), piece))


def _from_scan(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    flags = [_flags(license) for license in rows["license"].to_pylist()]
    rows = rows.append_column("flags", pa.array(flags, columns.FLAGS))
    arrays = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type) for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _flags(license: str | None) -> list[str]:
    return [] if license else ["license_unknown"]
