"""`songmill forget`: remove rows from a dataset permanently, and list the models that were trained on them.

Tombstones are written first, so that no row can come back if the command is killed; running it again completes it. Then
the units with these rows are rewritten one by one, and the rows are removed from the scan table and the marks.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import duckdb

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import read_marks, set_marks
from pipeline.dataset.rewrite_unit import drop_rows
from pipeline.dataset.scan_table import drop_from_scan, scanned_tracks
from pipeline.dataset.stats import connect
from pipeline.dataset.tombstones import bury, read_tombstones
from pipeline.dataset.writing import describe_dataset, exclusive_lock
from pipeline.errors import DataProblem, UsageProblem
from pipeline.planning.plan import Plan
from schemas.dataset import Layout
from training.run.provenance import models_below, tracks_of


@dataclass(frozen=True)
class Forgettable:
    """Rows that would be forgotten.

    Attributes:
        tracks: row id -> track id; None if the file could not be read.
        copies: number of rows that are included only because they are copies of the others.
        hours: hours of audio of those rows that are currently kept.
    """

    tracks: Mapping[str, str | None]
    copies: int
    hours: float


def find_forgettable(
    layout: Layout, ids: Sequence[str], where: str | None = None, *, copies: bool = True
) -> Forgettable:
    """Select rows by id or by a condition, with their copies.

    Args:
        layout: the dataset.
        ids: row or track ids.
        where: SQL condition over the columns of a row, such as `artist = 'X'`.
        copies: include rows that were rejected as copies of them; otherwise the next run would keep one of those.

    Raises:
        NoDataset: the folder is not a dataset.
        DataProblem: no such row.
        UsageProblem: the condition is not valid SQL, or neither ids nor a condition are given.
    """
    layout.require()
    if not ids and where is None:
        raise UsageProblem("nothing selected: use --track ID or --where \"artist = 'X'\"")
    scanned = scanned_tracks(layout)
    stones = read_tombstones(layout)
    buried = {*stones["row_id"].to_pylist(), *stones["track_id"].to_pylist()}
    rows = _rows(layout)
    named = {**_named(rows, scanned, ids, buried), **(_where(rows, where) if where is not None else {})}
    found = _with_copies(rows, scanned, named) if copies else named
    # A killed command may have left rows in place that already have tombstones.
    if not found and not buried & (Ledger(layout).read().rows.keys() | scanned.keys()):
        raise DataProblem(f"{layout.url}: no row matches, nothing to forget")
    return Forgettable(found, len(found) - len(named), _hours(rows, found))


def forget(layout: Layout, found: Forgettable, reason: str | None = None) -> None:
    """Remove the rows from the dataset and write tombstones for them.

    Args:
        layout: the dataset.
        found: the rows.
        reason: stored in the tombstones.

    Raises:
        DataProblem: another process is writing the dataset.
    """
    with exclusive_lock(layout):
        ledger = Ledger(layout).open()
        bury(layout, found.tracks, reason)
        gone = {*read_tombstones(layout)["row_id"].to_pylist()}
        for commit in [commit for commit in ledger.commits.values() if commit.rows.keys() & gone]:
            drop_rows(ledger, commit, gone)
        drop_from_scan(layout, gone)
        if marked := gone & read_marks(layout).keys():
            set_marks(layout, dict.fromkeys(marked))
        describe_dataset(layout, Plan.model_validate_json(layout.store.get(layout.plan)))


def models_trained_on(tracks: Iterable[str | None], folders: Iterable[Path]) -> list[Path]:
    """Paths of training runs and exported models below the folders that were trained on one of the tracks."""
    wanted = {track for track in tracks if track is not None}
    return [model for folder in folders for model in models_below(folder) if tracks_of(model) & wanted]


def _rows(layout: Layout) -> duckdb.DuckDBPyRelation:
    connection = connect(layout)
    return connection.sql("select * from tracks union all by name select * from quarantine")


def _named(
    rows: duckdb.DuckDBPyRelation, scanned: Mapping[str, str | None], ids: Sequence[str], buried: Set[str | None]
) -> dict[str, str | None]:
    there = {**scanned, **_pairs(rows)}
    found = {row_id: track for row_id, track in there.items() if row_id in ids or (track is not None and track in ids)}
    if missing := [id for id in ids if id not in {*found, *found.values(), *buried}]:
        raise DataProblem(f"no row or track with the id {', '.join(missing)}")
    return found


def _where(rows: duckdb.DuckDBPyRelation, where: str) -> dict[str, str | None]:
    try:
        return _pairs(rows.filter(where))
    except duckdb.Error as error:
        raise UsageProblem(f"--where {where}: {error}") from error


def _pairs(rows: duckdb.DuckDBPyRelation) -> dict[str, str | None]:
    return dict(rows.project("row_id, track_id").fetchall()) if "track_id" in rows.columns else {}


def _with_copies(
    rows: duckdb.DuckDBPyRelation, scanned: Mapping[str, str | None], named: Mapping[str, str | None]
) -> dict[str, str | None]:
    """The rows, rows with the same bytes, and rows that were rejected as duplicates of one of them."""
    tracks = {track for track in named.values() if track is not None}
    found = {**named, **{row_id: track for row_id, track in scanned.items() if track in tracks}}
    if "dedup" not in rows.columns:
        return found
    of = rows.filter("dedup.duplicate_of is not null").project("row_id, track_id, dedup.duplicate_of").fetchall()
    return found | {row_id: track for row_id, track, original in of if original in found}


def _hours(rows: duckdb.DuckDBPyRelation, found: Mapping[str, str | None]) -> float:
    if "audio" not in rows.columns:
        return 0.0
    kept = rows.filter("verdict.status = 'kept'").project("row_id, coalesce(audio.duration_s, 0)").fetchall()
    return sum(seconds for row_id, seconds in kept if row_id in found) / 3600
