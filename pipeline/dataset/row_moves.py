"""Rename the rows of moved songs: a journal of the planned changes, applied idempotently so that it survives kills.

`pipeline.curation.moves` decides which rows move where.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import Mark, replace_marks
from pipeline.dataset.rewrite_unit import read_unit, rewrite_unit
from pipeline.dataset.scan_table import drop_from_scan
from pipeline.ingest.identity import basis
from schemas import columns
from schemas.commits import Commit, RowState
from schemas.dataset import Layout


class Move(BaseModel):
    """A row that is renamed to another uri, with its old and new id and uri."""

    row_id: str
    uri: str
    new_row_id: str
    new_uri: str


class Journal(BaseModel):
    """Moves in progress, as they are stored.

    Attributes:
        moves: old row id -> move.
        overwritten: ids of rows to remove.
        units: number of each unit to rewrite -> number of its successor.
        marks: row id -> final mark (None for no mark), of every row whose mark changes.
        vacated: ids of rows to remove from the scan table.
    """

    moves: dict[str, Move]
    overwritten: set[str]
    units: dict[int, int]
    marks: dict[str, Mark | None]
    vacated: set[str]


def finish_moves(layout: Layout) -> None:
    """Finish the moves that a killed process has begun; call it before anything else writes the dataset."""
    if layout.store.exists(layout.moves):
        apply_moves(layout, Ledger(layout).open(), Journal.model_validate_json(layout.store.get(layout.moves)))


def apply_moves(layout: Layout, ledger: Ledger, journal: Journal) -> None:
    """Apply a journal and delete it. Steps that were already done are skipped."""
    for old, new in journal.units.items():
        if old in ledger.commits:
            _rename(ledger, ledger.commits[old], new, journal)
    if journal.marks:
        layout.store.confirm()
        replace_marks(layout, journal.marks)
    drop_from_scan(layout, journal.vacated)
    layout.store.publish({}, [layout.moves])


def _rename(ledger: Ledger, commit: Commit, unit: int, journal: Journal) -> None:
    """Rewrite a unit with the new ids of its rows."""
    rows = read_unit(ledger.layout, commit)
    rows = rows.filter(pc.invert(pc.is_in(rows["row_id"], pa.array(journal.overwritten, pa.string()))))
    names = [*columns.IDENTITY.names, "dedup", "verdict"]
    facts = [_renamed(row, journal.moves) for row in rows.select(names).to_pylist()]
    before = dict(zip((row["row_id"] for row in facts), rows["row_id"].to_pylist(), strict=True))
    for name in ("row_id", "uri", "dedup", "verdict"):
        field = rows.schema.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pa.array([row[name] for row in facts], field.type))
    states: dict[str, RowState] = {
        row["row_id"]: replace(commit.rows[before[row["row_id"]]], basis=basis(row)) for row in facts
    }
    rewrite_unit(ledger, commit, rows, states, commit.plan, unit=unit, before=before)


def _renamed(row: dict[str, Any], moves: Mapping[str, Move]) -> dict[str, Any]:
    """A row with its new id and uri, and those of the row it is a duplicate of."""
    verdict, dedup = row["verdict"], row["dedup"] or {}
    here, original = moves.get(row["row_id"]), moves.get(dedup.get("duplicate_of") or "")
    if original:
        message = (verdict["message"] or "").replace(original.row_id, original.new_row_id)
        verdict |= {"message": message.replace(original.uri, original.new_uri)}
        row |= {"dedup": dedup | {"duplicate_of": original.new_row_id}}
    if here:
        verdict |= {"message": verdict["message"] and verdict["message"].replace(row["uri"], here.new_uri)}
        row |= {"row_id": here.new_row_id, "uri": here.new_uri}
    return row
