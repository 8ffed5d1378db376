"""Detect moved files: files whose bytes the dataset knows under another uri. Their rows are renamed to the new uri.

Rules:

- A row identifies a location: `row_id` is the hash of its uri. A track identifies content: `track_id` is the hash of
  the file's bytes. Measurements belong to the track, so they are valid wherever the same bytes are.
- A row is *homeless* if its uri is no longer in the input, or has no file, or a file with other bytes. A location is
  *free* for a track if its bytes are there and the row of that location, if there is one, was made from other bytes.
- Homeless rows move to free locations of their track: kept rows first, to the location whose path has the longest
  common suffix. All rows move at once, so that files may have been swapped. A row whose location now belongs to another
  row and that has nowhere to go was overwritten: it leaves the dataset, like any song whose file is replaced.
- A kept row without a free location swaps with a row of the same bytes that was filtered as a copy, so that the kept
  row is the one with a file; if its own location now has another song, it takes over the copy's location instead. In
  both cases marks stay with their location; otherwise they move with the row.
- `row_id` follows the uri, although marks and feature files refer to rows by it: the dataset is then the same as one
  made from the new locations, uris alone tell which rows are in the input, and a new song at the old location is not
  mistaken for the one that left. The cost is that the units of moved rows are rewritten; no stage runs.
- Identity columns other than `row_id` and `uri` keep their values. If tags or sidecars differ at the new location, the
  curation pass notices that the row's basis has changed, and recomputes the columns that depend on them.
- Tombstones need no change: they apply to a track at every location.

Only new and changed files with the size of a homeless row's file are read. The moves are written to a journal before
they begin: if the process is killed, they are finished before anything else changes the dataset (`finish_moves`).
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import track as shown

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import Mark, read_marks
from pipeline.dataset.row_moves import Journal, Move, apply_moves
from pipeline.dataset.scan_table import is_unchanged, known_files, latest, scan_by_content
from pipeline.ingest.identity import encodable, identified, track_id
from pipeline.ingest.manifest import MANIFEST
from pipeline.planning.dag import Dag
from schemas import columns
from schemas.commits import Commit
from schemas.dataset import Layout
from schemas.storage.parquet import read_parquet

_READERS = 4 * (os.cpu_count() or 1)  # threads; storage latency, not hashing, is the bottleneck
_SUFFIX_LENGTHS = (64, 8, 4, 3, 2, 1, 0)  # trailing path components that must match, tried in this order


def settle_moves(layout: Layout, ledger: Ledger, manifest: pa.Table, dag: Dag, *, progress: bool) -> list[Move]:
    """Detect moved files and rename their rows in the scan table, the units and the marks.

    Args:
        layout: the dataset.
        ledger: its commits, open for writing.
        manifest: the current input.
        dag: has the scan stages.
        progress: show on stderr how many files have been read.

    Returns:
        The moves of rows to another uri, without rows that swapped with a copy.
    """
    known = known_files(layout)
    contents = _Contents.of(manifest, known, ledger)
    if not contents.homeless_tracks:
        return []
    found = contents.read(progress)
    if found.num_rows:
        scan_by_content(layout, dag, found)
    matched = _match(contents, ledger)
    if matched.moves:
        journal = _planned(layout, ledger, matched, {*manifest["row_id"].to_pylist()})
        layout.store.publish({layout.moves: journal.model_dump_json().encode()})
        apply_moves(layout, ledger, journal)
    return [move for old, move in sorted(matched.moves.items()) if old not in matched.exchanged]


@dataclass
class _Contents:
    """The content of each location, as far as it is needed to match homeless rows.

    Attributes:
        there: ids of rows of the input that have a file.
        unread: row id -> manifest row, of new and changed files.
        uris: row id -> uri, of unread rows and of all rows with a track of `owners`.
        sizes: track id -> size in bytes, of tracks that may be homeless and that a scan has seen.
        owners: track id -> ids of rows that were made from it and may be homeless.
        track_at: row id -> track at its location, None if it cannot be read. It has only tracks of `owners`, and unread
            rows once `read` has read them.
    """

    there: Set[str]
    unread: dict[str, dict[str, Any]]
    uris: dict[str, str]
    sizes: dict[str, int]
    owners: dict[str, set[str]]
    track_at: dict[str, str | None]

    @classmethod
    def of(cls, manifest: pa.Table, known: pa.Table, ledger: Ledger) -> "_Contents":
        """From the scan table and the ledger, without opening a song."""
        newest = latest(known)
        there = manifest.filter(pc.is_valid(manifest["size"]))
        unchanged = is_unchanged(there, newest)
        read, unread = there.filter(unchanged).select(["row_id"]), there.filter(pc.invert(unchanged))
        current = newest["track_id"].take(pc.index_in(read["row_id"], newest["row_id"]))
        committed = pa.table(
            {
                "row_id": pa.array(list(ledger.rows), pa.string()),
                "track_id": pa.array([row.track_id for row in ledger.rows.values()], pa.string()),
            }
        )
        made_of = pa.concat_tables([known.select(committed.column_names), committed])
        in_place = pc.fill_null(
            pc.equal(made_of["track_id"], current.take(pc.index_in(made_of["row_id"], read["row_id"]))), False
        )
        homeless = made_of.filter(pc.and_(pc.invert(in_place), pc.is_valid(made_of["track_id"])))
        owners: defaultdict[str, set[str]] = defaultdict(set)
        for row in homeless.to_pylist():
            owners[row["track_id"]].add(row["row_id"])
        tracks = pa.array(owners, pa.string())
        sized = known.filter(pc.is_in(known["track_id"], tracks))
        is_owned = pc.is_in(current, tracks)
        track_at = zip(read["row_id"].filter(is_owned).to_pylist(), current.filter(is_owned).to_pylist(), strict=True)
        named = newest.filter(
            pc.or_(pc.is_in(newest["row_id"], homeless["row_id"]), pc.is_in(newest["track_id"], tracks))
        )
        rows = {row["row_id"]: row for row in unread.to_pylist()} if owners else {}
        uris = dict(zip(named["row_id"].to_pylist(), named["uri"].to_pylist(), strict=True))
        return cls(
            there={*there["row_id"].to_pylist()} if owners else set(),
            unread=rows,
            uris=uris | {row_id: row["uri"] for row_id, row in rows.items()},
            sizes=dict(zip(sized["track_id"].to_pylist(), sized["size"].to_pylist(), strict=True)),
            owners=dict(owners),
            track_at=dict(track_at),
        )

    @property
    def homeless_tracks(self) -> Set[str]:
        """Tracks of rows that may be homeless."""
        return self.owners.keys()

    def read(self, progress: bool) -> pa.Table:
        """Read the unread files that may have a homeless row's bytes.

        Returns:
            Those that do: table of the identity columns, size (bytes) and stamp.
        """
        rows = self._worth_reading()
        with ThreadPoolExecutor(_READERS) as pool:
            tracks = shown(
                pool.map(lambda row: _track(row["uri"]), rows),
                "moved songs",
                len(rows),
                console=Console(stderr=True),
                transient=True,
                disable=not (progress and rows),
            )
            self.track_at |= {row["row_id"]: track for row, track in zip(rows, tracks, strict=True)}
            known = [row for row in rows if self.track_at[row["row_id"]] in self.owners]
            described = [*pool.map(lambda row: identified(row, self.track_at[row["row_id"]]), known)]
        schema = pa.schema([*columns.IDENTITY, MANIFEST.field("size"), MANIFEST.field("stamp")])
        texts = [{name: encodable(row[name]) for name in columns.IDENTITY.names} for row in described]
        return pa.Table.from_pylist(
            [{**text, "size": row["size"], "stamp": row["stamp"]} for text, row in zip(texts, described, strict=True)],
            schema,
        )

    def _worth_reading(self) -> list[dict[str, Any]]:
        """Unread files with the size of a homeless track.

        A changed file is left out if the only row of that size is its own: then nothing can have moved there.
        """
        owners, contenders = defaultdict[int | None, set[str]](set), defaultdict[int, set[str]](set)
        for track, rows in self.owners.items():
            owners[self.sizes.get(track)] |= rows
        for row in self.unread.values():
            contenders[row["size"]].add(row["row_id"])
        unsized = owners.pop(None, set[str]())  # tracks that are in no scan table
        return [
            row
            for row in self.unread.values()
            if unsized
            or (row["size"] in owners and not owners[row["size"]] == contenders[row["size"]] == {row["row_id"]})
        ]

    def is_in_place(self, row_id: str, track: str) -> bool:
        """Whether a row that may be homeless is at its location after all; an unread file is compared by size."""
        if row_id in self.track_at:
            return self.track_at[row_id] == track
        return row_id in self.unread and self.unread[row_id]["size"] == self.sizes.get(track)


def _track(uri: str) -> str | None:
    try:
        return track_id(uri)
    except Exception:  # unreadable file: not a known moved song; the scan reports the error
        return None


@dataclass(frozen=True)
class _Matched:
    """Result of matching homeless rows to locations.

    Attributes:
        moves: old row id -> move, of committed rows.
        exchanged: ids of rows among them that swap with a copy: no file was moved, and marks stay.
        overwritten: ids of committed rows whose location now belongs to another row.
    """

    moves: Mapping[str, Move]
    exchanged: Set[str]
    overwritten: Set[str]


def _match(contents: _Contents, ledger: Ledger) -> _Matched:
    rows = ledger.rows
    locations: defaultdict[str, list[str]] = defaultdict(list)
    for row_id, track in sorted(contents.track_at.items()):
        if track in contents.owners:
            locations[track].append(row_id)
    places: dict[str, str] = {}
    exchanged: set[str] = set()
    for track, present in locations.items():
        homeless = [
            row_id
            for row_id in sorted(contents.owners[track])
            if row_id in rows and rows[row_id].track_id == track and not contents.is_in_place(row_id, track)
        ]
        kept = [row_id for row_id in homeless if rows[row_id].status == "kept"]
        free = [row_id for row_id in present if row_id not in rows or rows[row_id].track_id != track]
        found = _pairs(kept, free, contents.uris)
        left = [row_id for row_id in free if row_id not in found.values()]
        found |= _pairs([row_id for row_id in homeless if row_id not in kept], left, contents.uris)
        places |= found
        copies = (row_id for row_id in present if row_id not in free and rows[row_id].status == "filtered")
        for row_id in (row_id for row_id in kept if row_id not in found):
            if copy := next((copy for copy in copies if _is_copy(ledger, copy)), None):
                places |= {row_id: copy} if row_id in contents.there else {row_id: copy, copy: row_id}
                exchanged |= {row_id, copy}
    uris = contents.uris
    moves = {
        old: Move(row_id=old, uri=uris.get(old, old), new_row_id=new, new_uri=uris[new]) for old, new in places.items()
    }
    return _Matched(moves, exchanged, {new for new in places.values() if new in rows and new not in places})


def _pairs(rows: Sequence[str], places: Sequence[str], uris: Mapping[str, str]) -> dict[str, str]:
    """Row id -> id of its new location; pairs with the longest common path suffix are matched first."""
    pairs: dict[str, str] = {}
    taken: set[str] = set()
    for parts in _SUFFIX_LENGTHS:
        free: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for place in places:
            if place not in taken:
                free[_tail(uris[place], parts)].append(place)
        for row in rows:
            if row not in pairs and (alike := free[_tail(uris.get(row, ""), parts)]):
                pairs[row] = alike.pop(0)
                taken.add(pairs[row])
    return pairs


def _tail(uri: str, parts: int) -> tuple[str, ...]:
    return PurePosixPath(uri).parts[-parts:] if parts else ()


def _is_copy(ledger: Ledger, row_id: str) -> bool:
    """Whether a filtered row was filtered as a duplicate."""
    commit = next(commit for commit in ledger.commits.values() if row_id in commit.rows)
    name = ledger.layout.quarantine_file(commit.unit)
    rows = read_parquet(ledger.layout.store, name, ["row_id", "verdict"])
    verdicts = rows.filter(pc.equal(rows["row_id"], row_id))["verdict"]
    return verdicts[0].as_py()["stage"] == "dedup"


def _planned(layout: Layout, ledger: Ledger, matched: _Matched, manifest: Set[str]) -> Journal:
    moves, touched = matched.moves, matched.moves.keys() | matched.overwritten
    units = [
        commit.unit
        for commit in ledger.commits.values()
        if commit.rows.keys() & touched or _originals(layout, commit) & moves.keys()
    ]
    marks = read_marks(layout)
    followed = {old: move.new_row_id for old, move in moves.items() if old not in matched.exchanged}
    marked: dict[str, Mark | None] = dict.fromkeys({*followed, *followed.values()})
    marked |= {new: marks.get(old) for old, new in followed.items()}
    return Journal(
        moves=dict(moves),
        overwritten={*matched.overwritten},
        units=dict(zip(units, range(ledger.next_unit, ledger.next_unit + len(units)), strict=True)),
        marks={row_id: mark for row_id, mark in marked.items() if mark != marks.get(row_id)},
        vacated=moves.keys() - {move.new_row_id for move in moves.values()} - manifest,
    )


def _originals(layout: Layout, commit: Commit) -> set[str | None]:
    """Ids of the rows that a unit's rows are duplicates of."""
    name = layout.quarantine_file(commit.unit)
    if name not in commit.files:
        return set()
    return {*pc.struct_field(read_parquet(layout.store, name, ["dedup"])["dedup"], "duplicate_of").to_pylist()}
