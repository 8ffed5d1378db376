"""A lyric library: songs with the phones of their lines, and the index that finds them.

A Parquet file of up to some thousand songs is indexed in memory; for more, `songmill lyrics index` writes a folder:

    index.json                     versions and parameters it was built with, and its segments
    segments/NAME/songs.arrow      ids, titles, lines and their phones; mapped, not read
    segments/NAME/{keys,offsets,songs}.npy
    skipped.parquet                which songs were left out, and why

Segments are immutable; songs that are added later form segments of their own.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.matching.index import SKETCHES, ContainmentSketch, Postings, Sketch, describe
from stages.text.ipa import to_ipa
from stages.text.lyric_text import LyricLine, parse

FORMAT = 1
MANIFEST = "index.json"
SEGMENTS = "segments"
SONGS = "songs.arrow"
ROWS_PER_BATCH = 256  # all batches are of this size, so that a row's number gives its batch
COLUMNS = ("id", "title", "artist", "language", "text", "license")  # of the Parquet file
SONG_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "title", "artist", "language", "license")),
        ("lines", pa.list_(pa.string())),
        ("starts_s", pa.list_(pa.float64())),
        ("phones", pa.list_(pa.string())),
    ]
)


class LibraryError(ValueError):
    """A lyric library that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class LyricSong:
    """A song whose lyrics are known.

    Attributes:
        id: unique in its library.
        lines: the sung lines, in order.
        phones: IPA of each line without spaces.
        title: as given by the library.
        artist: as given by the library.
        license: as given by the library.
    """

    id: str
    lines: Sequence[LyricLine]
    phones: Sequence[str]
    title: str = ""
    artist: str = ""
    license: str = ""

    @classmethod
    def read(cls, id: str, text: str, language: str | None, **more: str) -> "LyricSong":
        """A song from its text; `more` is title, artist and license."""
        lines = parse(text)
        phones = [ipa.replace(" ", "") for ipa in to_ipa([line.text for line in lines], language)]
        return cls(id, lines, phones, **more)


@dataclass(frozen=True)
class Candidate:
    """A song that may match the transcript, and the share 0..1 of the transcript's key weight that it contains."""

    song: LyricSong
    share: float


class _Segment:
    """Songs and their postings, both memory-mapped or both in memory."""

    def __init__(self, postings: Postings, batches: Sequence[pa.RecordBatch] | pa.RecordBatchFileReader) -> None:
        self.postings = postings
        self._batches = batches

    def song(self, number: int) -> LyricSong:
        batch, row = divmod(number, ROWS_PER_BATCH)
        reader = self._batches
        found = reader.get_batch(batch) if isinstance(reader, pa.RecordBatchFileReader) else reader[batch]
        return _song(found.slice(row, 1).to_pylist()[0])


class LyricLibrary:
    """Finds songs by the phones of a transcript.

    >>> library = LyricLibrary.open(Path("lyrics.index"))  # doctest: +SKIP
    >>> library.candidates("ɪfjuwʌntɪt", most=5)  # doctest: +SKIP
    """

    def __init__(self, sketch: Sketch, segments: Sequence[_Segment]) -> None:
        self.sketch = sketch
        self._segments = segments

    @classmethod
    def of(cls, songs: Iterable[LyricSong], sketch: Sketch | None = None) -> "LyricLibrary":
        """A library in memory."""
        sketch = sketch or ContainmentSketch()
        listed = list(songs)
        postings = Postings.build([sketch.keys("".join(song.phones)) for song in listed])
        return cls(sketch, [_Segment(postings, song_table(listed).to_batches(ROWS_PER_BATCH))])

    @classmethod
    def read(cls, file: Path, sketch: Sketch | None = None) -> "LyricLibrary":
        """The songs of a Parquet file with the text columns COLUMNS, indexed in memory.

        Raises:
            LibraryError: columns are missing.
        """
        check_columns(file)
        rows = pq.read_table(file, columns=["id", "title", "artist", "language", "text", "license"]).to_pylist()
        return cls.of(
            (
                LyricSong.read(
                    row["id"],
                    row["text"] or "",
                    row["language"],
                    **{name: row[name] or "" for name in ("title", "artist", "license")},
                )
                for row in rows
            ),
            sketch,
        )

    @classmethod
    def open(cls, folder: Path) -> "LyricLibrary":
        """Map an index folder.

        Raises:
            LibraryError: it is not an index, or was built by versions that turn text into other phones.
        """
        manifest = read_manifest(folder)
        segments = []
        for segment in manifest["segments"]:
            place = folder / SEGMENTS / segment["name"]
            songs = pa.ipc.open_file(pa.memory_map(str(place / SONGS)))
            segments.append(_Segment(Postings.open(place, segment["songs"]), songs))
        return cls(sketch_of(manifest), segments)

    def candidates(self, phones: str, most: int) -> list[Candidate]:
        """At most `most` songs that share passages with these phones (no spaces), best first."""
        keys = self.sketch.keys(phones)
        hits = [(segment, *hit) for segment in self._segments for hit in segment.postings.best(keys, most)]
        best = sorted(hits, key=lambda hit: -hit[2])[:most]
        return [Candidate(segment.song(number), share) for segment, number, share in best]


def song_table(songs: Sequence[LyricSong]) -> pa.Table:
    """Songs as a table of `SONG_SCHEMA`, the format of `songs.arrow`."""
    return pa.Table.from_pylist(
        [
            {
                "id": song.id,
                "title": song.title,
                "artist": song.artist,
                "license": song.license,
                "lines": [line.text for line in song.lines],
                "starts_s": [line.start_s for line in song.lines],
                "phones": list(song.phones),
            }
            for song in songs
        ],
        SONG_SCHEMA,
    )


def write_segment(folder: Path, songs: pa.Table, postings: Postings) -> None:
    """Write songs and their postings into a new folder."""
    folder.mkdir(parents=True)
    postings.save(folder)
    with pa.ipc.new_file(folder / SONGS, SONG_SCHEMA) as file:
        file.write_table(songs.combine_chunks(), max_chunksize=ROWS_PER_BATCH)


def check_columns(file: Path) -> None:
    """Check that a Parquet file has the columns of a library.

    Raises:
        LibraryError: it does not, or is not a Parquet file.
    """
    try:
        there = set(pq.read_schema(file).names)
    except (OSError, pa.ArrowInvalid) as error:
        raise LibraryError(f"{file} is not a Parquet file: {error}") from error
    if missing := [name for name in COLUMNS if name not in there]:
        raise LibraryError(f"{file}: a lyric library needs the columns {', '.join(COLUMNS)}; missing: {missing}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of index.json.

    Raises:
        LibraryError: it is missing or unreadable, or another version wrote the index.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LibraryError(f"{folder} is not a lyric index: {error}; make one with: songmill lyrics index") from error
    differing = [
        f"{name} {manifest.get('versions', {}).get(name)} (here {here})"
        for name, here in versions().items()
        if manifest.get("versions", {}).get(name) != here
    ]
    if manifest.get("format") != FORMAT or manifest["sketch"]["engine"] not in SKETCHES or differing:
        built_with = ", ".join(differing) or f"format {manifest.get('format')}"
        raise LibraryError(f"{folder} was built with {built_with}, so its phones differ from ours; build it again")
    return manifest


def new_manifest(sketch: Sketch) -> dict[str, Any]:
    """The manifest of an index without segments."""
    return {"format": FORMAT, "sketch": describe(sketch), "versions": versions(), "segments": []}


def sketch_of(manifest: dict[str, Any]) -> Sketch:
    """The sketch that an index was built with."""
    fields = dict(manifest["sketch"])
    return SKETCHES[fields.pop("engine")](**fields)


def versions() -> dict[str, str]:
    """Versions of the packages that determine a text's phones and their keys."""
    packages = ("espeakng-loader", "phonemizer", "pyopenjtalk-plus", "pypinyin", "datasketch")
    return {package: version(package) for package in packages}


def _song(row: dict[str, Any]) -> LyricSong:
    lines = [LyricLine(text, start_s) for text, start_s in zip(row["lines"], row["starts_s"], strict=True)]
    return LyricSong(row["id"], lines, row["phones"], row["title"] or "", row["artist"] or "", row["license"] or "")
