"""`songmill forget`: take rows out of a dataset for good, and say which models have learnt from them.

Tombstones come first, so that a killed command cannot let a row come back; giving it again finishes it. Then the units
that hold the rows are rewritten one by one, the scan table loses them, and so do the marks.
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
    """What would be forgotten.

    Attributes:
        tracks: row id -> track id; None where the file could not be read.
        copies: how many of the rows are there because they are copies of the others.
        hours: of the rows that are kept now.
    """

    tracks: Mapping[str, str | None]
    copies: int
    hours: float


def find_forgettable(
    layout: Layout, ids: Sequence[str], where: str | None = None, *, copies: bool = True
) -> Forgettable:
    """Rows that are named or that a condition holds for, and their copies.

    Args:
        layout: the dataset.
        ids: row or track ids.
        where: SQL over the columns of a row, such as `artist = 'X'`.
        copies: take in whatever was turned away as a copy of them, else the next run would keep it in their place.

    Raises:
        NoDataset: the folder holds none.
        DataProblem: no such row.
        UsageProblem: the condition is no SQL, or neither ids nor a condition are given.
    """
    layout.require()
    if not ids and where is None:
        raise UsageProblem("say what to forget: --track ID, or --where \"artist = 'X'\"")
    scanned = scanned_tracks(layout)
    stones = read_tombstones(layout)
    buried = {*stones["row_id"].to_pylist(), *stones["track_id"].to_pylist()}
    rows = _rows(layout)
    named = {**_named(rows, scanned, ids, buried), **(_where(rows, where) if where is not None else {})}
    found = _with_copies(rows, scanned, named) if copies else named
    if not found and not buried & (Ledger(layout).read().rows.keys() | scanned.keys()):  # of a killed command
        raise DataProblem(f"{layout.root}: nothing there to forget")
    return Forgettable(found, len(found) - len(named), _hours(rows, found))


def forget(layout: Layout, found: Forgettable, reason: str | None = None) -> None:
    """Rewrite what holds the rows, without them.

    Args:
        layout: the dataset.
        found: the rows.
        reason: why; stands on the tombstones.

    Raises:
        DataProblem: another process writes the dataset.
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
        describe_dataset(layout, Plan.model_validate_json(layout.plan.read_bytes()))


def models_trained_on(tracks: Iterable[str | None], folders: Iterable[Path]) -> list[Path]:
    """Runs and exported models below some folders that have learnt from one of the tracks."""
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
        raise DataProblem(f"no row or track has the id {', '.join(missing)}")
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
    """The rows with those of the same bytes, and those that were found to be copies of one of them."""
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
