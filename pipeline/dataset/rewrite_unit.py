"""Rewrite the files of a committed unit with other verdicts, other row ids or fewer rows; no stage runs.

Rows keep their order. Feature files are rewritten with the same rows as the new shard, and its digest in their footer.
"""

import uuid
from collections.abc import Mapping, Set
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.shard_files import FEATURE_ROW_GROUP, write_rows
from schemas.commits import Commit, RowState
from schemas.dataset import FOOTER_PLAN, FOOTER_SHARD_DIGEST, Layout, folder_of
from schemas.files import file_digest
from schemas.storage.parquet import read_parquet


def read_unit(layout: Layout, commit: Commit) -> pa.Table:
    """All rows of a unit, kept rows first; the files' footer metadata is in the schema's metadata."""
    tables = [
        read_parquet(layout.store, name)
        for folder in (layout.shards, layout.quarantine)
        for name in sorted(commit.files)
        if folder_of(name) == folder
    ]
    return pa.concat_tables([tables[0], *(table.cast(tables[0].schema) for table in tables[1:])])


def rewrite_unit(
    ledger: Ledger,
    old: Commit,
    rows: pa.Table,
    states: Mapping[str, RowState],
    plan: str,
    *,
    unit: int | None = None,
    before: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Replace a unit by one with the given rows.

    Args:
        ledger: the dataset's ledger, open for writing.
        old: record of the unit.
        rows: the remaining rows of `read_unit`, with their new verdicts and ids.
        states: row id -> new state, of these rows.
        plan: id of the plan that the verdicts are from.
        unit: the new unit's number; default: the next free one.
        before: new row id -> row id in the old unit's files, of renamed rows.
    """
    number = ledger.next_unit if unit is None else unit
    ledger.rewrite(*_written(ledger.layout, old, rows, states, plan, number, before))


def drop_rows(ledger: Ledger, old: Commit, gone: Set[str]) -> None:
    """Replace a unit by one without the rows with these ids."""
    rows = read_unit(ledger.layout, old)
    left = rows.filter(pc.invert(pc.is_in(rows["row_id"], pa.array(gone, pa.string()))))
    states = {row_id: state for row_id, state in old.rows.items() if row_id not in gone}
    rewrite_unit(ledger, old, left, states, old.plan)


def split_unit(ledger: Ledger, old: Commit, apart: Set[str]) -> None:
    """Move some rows of a unit to a unit of their own; plan and verdicts do not change.

    Args:
        ledger: the dataset's ledger, open for writing.
        old: record of the unit.
        apart: ids of the rows to move; at least one row must remain.
    """
    rows = read_unit(ledger.layout, old)
    chosen = pc.is_in(rows["row_id"], pa.array(apart, pa.string()))
    pieces = []
    for number, piece in enumerate((rows.filter(chosen), rows.filter(pc.invert(chosen))), ledger.next_unit):
        states = {row_id: old.rows[row_id] for row_id in piece["row_id"].to_pylist()}
        pieces.append(_written(ledger.layout, old, piece, states, old.plan, number, {}))
    pieces[0][0].timings = {}  # the other unit's record has them
    ledger.split(*pieces)


def _written(
    layout: Layout,
    old: Commit,
    rows: pa.Table,
    states: Mapping[str, RowState],
    plan: str,
    unit: int,
    before: Mapping[str, str],
) -> tuple[Commit, dict[str, Path]]:
    """Write the files of a unit's replacement without committing them; returns its record and the files."""
    footer = {**(rows.schema.metadata or {}), FOOTER_PLAN: plan.encode()}
    kept = pc.equal(pc.struct_field(rows["verdict"], "status"), "kept")
    files: dict[str, Path] = {}
    if (shard := rows.filter(kept)).num_rows:
        path = files[layout.shard_file(unit)] = _temporary(layout)
        write_rows(shard, path, footer)
        files |= _features(layout, old, unit, shard["row_id"], file_digest(path), before)
    if (rejected := rows.filter(pc.invert(kept))).num_rows:
        path = files[layout.quarantine_file(unit)] = _temporary(layout)
        write_rows(rejected, path, footer)
    commit = old.model_copy(
        update={
            "unit": unit,
            "plan": plan,
            "files": {name: file_digest(path) for name, path in files.items()},
            "rows": dict(states),
            "supersedes": old.unit,
        }
    )
    return commit, files


def _features(
    layout: Layout, old: Commit, unit: int, row_ids: pa.ChunkedArray, shard_digest: str, before: Mapping[str, str]
) -> dict[str, Path]:
    """Write the old unit's features for the rows of the new shard, in its order."""
    wanted = pa.array([before.get(row_id, row_id) for row_id in row_ids.to_pylist()], pa.string())
    files = {}
    for name in (name for name in old.files if name.startswith("features/")):
        rows = read_parquet(layout.store, name)
        rows = rows.take(pc.index_in(wanted, rows["row_id"].combine_chunks()))
        rows = rows.set_column(rows.column_names.index("row_id"), rows.schema.field("row_id"), row_ids)
        feature = folder_of(name).rpartition("/")[2]
        temporary = files[layout.feature_file(feature, unit)] = _temporary(layout)
        footer = {**(rows.schema.metadata or {}), FOOTER_SHARD_DIGEST: shard_digest.encode()}
        write_rows(rows, temporary, footer, FEATURE_ROW_GROUP)
    return files


def _temporary(layout: Layout) -> Path:
    return layout.store.scratch / f"rewritten-{uuid.uuid4().hex}.parquet"
