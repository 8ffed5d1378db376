"""Songs that were moved: files whose bytes the dataset knows under another uri, and what follows them.

The rules of identity:

- A row is a place: `row_id` is the hash of its uri. A track is what lies there: `track_id` is the hash of its bytes.
  What stages measured belongs to the track, so that it is good wherever the same bytes lie.
- A row is *homeless* when its uri is not in the input any more, has no file there, or a file with other bytes. A place
  is *free* for a track when its bytes lie there and the row of that place, if there is one, was made of other bytes.
- Homeless rows move to free places of their track: kept rows first, to where the path ends most alike. All rows move at
  once, so that songs may change places with each other. A row whose place is taken by another, and that has none to go
  to, was overwritten: it leaves, as any song does whose file is replaced.
- A kept row that finds no free place changes places with a row of the same bytes that is filtered as a copy, so that
  what is kept is where a file is (or takes its place, where its own has another song now). Marks stay where they are
  then; else they follow.
- `row_id` follows the uri, although marks and feature files name rows by it: a dataset is then the same as one made at
  the new place, what is in the input can be told from uris alone, and a new song at the old place is not taken for the
  one that left. The price is that the units of moved rows are written anew; no stage runs.
- Identity columns other than `row_id` and `uri` stay as they were. Where tags or sidecars say otherwise at the new
  place, the curation pass finds another basis than the row was committed with, and makes anew what depends on them.
- Tombstones need not follow: they hold for a track wherever it lies.

Bytes are read only of new and changed files whose size is that of a homeless row's. What is to happen is written down
before it begins: a killed process's moves are finished before anything else is done to the dataset (`finish_moves`).
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
import pyarrow.parquet as pq
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
from schemas.files import write_durably

_READERS = 4 * (os.cpu_count() or 1)  # storage answers slower than bytes are hashed
_TAILS = (64, 8, 4, 3, 2, 1, 0)  # parts of a path, from its end, that must agree: all, as many as can be, none


def settle_moves(layout: Layout, ledger: Ledger, manifest: pa.Table, dag: Dag, *, progress: bool) -> list[Move]:
    """Recognise moved files and let their rows follow, in the scan table, the units, and marks.

    Args:
        layout: the dataset.
        ledger: its commits, open for writing.
        manifest: the input as it is now.
        dag: its scan stages.
        progress: show on stderr how many files have been read.

    Returns:
        The rows that are under another uri now.
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
        write_durably(layout.moves, journal.model_dump_json().encode())
        apply_moves(layout, ledger, journal)
    return [move for old, move in sorted(matched.moves.items()) if old not in matched.exchanged]


@dataclass
class _Contents:
    """What bytes lie where, as far as it matters to rows that may have lost theirs.

    Attributes:
        there: rows of the input that have a file.
        unread: row id -> manifest row, of files that nobody has read.
        uris: row id -> its uri, of unread rows and of all that hold a track of `owners`.
        sizes: track id -> bytes, of tracks that may be homeless and that a scan has seen.
        owners: track id -> rows that were made of it and may be homeless.
        at: row id -> the track that lies in its place, None where it cannot be read; only of such tracks, and of
            unread rows once `read` has read them.
    """

    there: Set[str]
    unread: dict[str, dict[str, Any]]
    uris: dict[str, str]
    sizes: dict[str, int]
    owners: dict[str, set[str]]
    at: dict[str, str | None]

    @classmethod
    def of(cls, manifest: pa.Table, known: pa.Table, ledger: Ledger) -> "_Contents":
        """From what the scan table and the ledger say, without opening a file."""
        newest = latest(known)
        there = manifest.filter(pc.is_valid(manifest["size"]))
        unchanged = is_unchanged(there, newest)
        read, unread = there.filter(unchanged).select(["row_id"]), there.filter(pc.invert(unchanged))
        lying = newest["track_id"].take(pc.index_in(read["row_id"], newest["row_id"]))
        committed = pa.table(
            {
                "row_id": pa.array(list(ledger.rows), pa.string()),
                "track_id": pa.array([row.track_id for row in ledger.rows.values()], pa.string()),
            }
        )
        made_of = pa.concat_tables([known.select(committed.column_names), committed])
        in_place = pc.fill_null(
            pc.equal(made_of["track_id"], lying.take(pc.index_in(made_of["row_id"], read["row_id"]))), False
        )
        homeless = made_of.filter(pc.and_(pc.invert(in_place), pc.is_valid(made_of["track_id"])))
        owners: defaultdict[str, set[str]] = defaultdict(set)
        for row in homeless.to_pylist():
            owners[row["track_id"]].add(row["row_id"])
        tracks = pa.array(owners, pa.string())
        sized = known.filter(pc.is_in(known["track_id"], tracks))
        standing = pc.is_in(lying, tracks)
        at = zip(read["row_id"].filter(standing).to_pylist(), lying.filter(standing).to_pylist(), strict=True)
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
            at=dict(at),
        )

    @property
    def homeless_tracks(self) -> Set[str]:
        """Tracks of rows that may have lost their place."""
        return self.owners.keys()

    def read(self, progress: bool) -> pa.Table:
        """Read the unread files that may hold a homeless row's bytes.

        Returns:
            Those that do: identity columns, size and stamp.
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
            self.at |= {row["row_id"]: track for row, track in zip(rows, tracks, strict=True)}
            known = [row for row in rows if self.at[row["row_id"]] in self.owners]
            described = [*pool.map(lambda row: identified(row, self.at[row["row_id"]]), known)]
        schema = pa.schema([*columns.IDENTITY, MANIFEST.field("size"), MANIFEST.field("stamp")])
        texts = [{name: encodable(row[name]) for name in columns.IDENTITY.names} for row in described]
        return pa.Table.from_pylist(
            [{**text, "size": row["size"], "stamp": row["stamp"]} for text, row in zip(texts, described, strict=True)],
            schema,
        )

    def _worth_reading(self) -> list[dict[str, Any]]:
        """Unread files with the size of a homeless track; not one that has only its own former self to be."""
        owners, contenders = defaultdict[int | None, set[str]](set), defaultdict[int, set[str]](set)
        for track, rows in self.owners.items():
            owners[self.sizes.get(track)] |= rows
        for row in self.unread.values():
            contenders[row["size"]].add(row["row_id"])
        unsized = owners.pop(None, set[str]())  # of a track that no scan remembers
        return [
            row
            for row in self.unread.values()
            if unsized
            or (row["size"] in owners and not owners[row["size"]] == contenders[row["size"]] == {row["row_id"]})
        ]

    def lies_in_place(self, row_id: str, track: str) -> bool:
        """Whether a row that may be homeless is not, as far as anybody knows."""
        if row_id in self.at:
            return self.at[row_id] == track
        return row_id in self.unread and self.unread[row_id]["size"] == self.sizes.get(track)


def _track(uri: str) -> str | None:
    try:
        return track_id(uri)
    except Exception:  # hostile or failing storage: it is not known to be a moved song, and the scan says what is wrong
        return None


@dataclass(frozen=True)
class _Matched:
    """What the rules of identity say.

    Attributes:
        moves: committed rows that move, by their old ids.
        exchanged: those of them that change places with a copy: nothing was moved but the columns, and marks stay.
        overwritten: committed rows whose place is taken.
    """

    moves: Mapping[str, Move]
    exchanged: Set[str]
    overwritten: Set[str]


def _match(contents: _Contents, ledger: Ledger) -> _Matched:
    rows = ledger.rows
    lying: defaultdict[str, list[str]] = defaultdict(list)
    for row_id, track in sorted(contents.at.items()):
        if track in contents.owners:
            lying[track].append(row_id)
    places: dict[str, str] = {}
    exchanged: set[str] = set()
    for track, present in lying.items():
        homeless = [
            row_id
            for row_id in sorted(contents.owners[track])
            if row_id in rows and rows[row_id].track_id == track and not contents.lies_in_place(row_id, track)
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
    """Each row and its place, as far as there are both: those whose paths end most alike first."""
    pairs: dict[str, str] = {}
    taken: set[str] = set()
    for parts in _TAILS:
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
    """Whether a filtered row is there as a copy of another."""
    commit = next(commit for commit in ledger.commits.values() if row_id in commit.rows)
    path = ledger.layout.quarantine_file(commit.unit)
    rows = pq.read_table(path, columns=["row_id", "verdict"], filters=[("row_id", "=", row_id)])
    return rows["verdict"][0].as_py()["stage"] == "dedup"


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
    """Rows that those of a unit are copies of."""
    path = layout.quarantine_file(commit.unit)
    if layout.name_of(path) not in commit.files:
        return set()
    return {*pc.struct_field(pq.read_table(path, columns=["dedup"])["dedup"], "duplicate_of").to_pylist()}
