"""Builds a lyric index from a Parquet file of lyrics, computing phones on all cores of a Ray cluster."""

import json
import os
import secrets
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from pipeline.errors import DataProblem
from pipeline.execution.cluster import cluster
from schemas.config import ResourceConfig
from schemas.files import move_durably, naming
from stages.matching.index import Postings, Sketch
from stages.matching.library import (
    COLUMNS,
    MANIFEST,
    SEGMENTS,
    SONG_SCHEMA,
    SONGS,
    LibraryError,
    LyricSong,
    check_columns,
    new_manifest,
    read_manifest,
    sketch_of,
    song_table,
    write_segment,
)
from stages.text.language import known
from stages.text.lyric_text import parse

LONGEST_TEXT = 100_000  # characters; a book, not a song
_ROWS_PER_TASK = 200
_SEGMENT_SONGS = 100_000
_SKIPPED = "skipped.parquet"
_SKIPPED_SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string())])


@dataclass
class Indexed:
    """The result of a build.

    Attributes:
        songs: number of newly indexed songs.
        skipped: skipped songs by reason; `skipped.parquet` lists them.
    """

    songs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def build_index(
    library: Path,
    out: Path,
    sketch: Sketch,
    resources: ResourceConfig,
    *,
    add: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Indexed:
    """Index the songs of a Parquet file into the folder `out`, or, with `add`, add them to an existing index.

    The index is built in a folder beside `out` and moved there at the end, so that it is never incomplete.

    Args:
        library: Parquet with the text columns id, title, artist, language, text, license.
        out: folder of the index.
        sketch: how songs become keys; with `add` the index's own is used instead.
        resources: the Ray cluster.
        add: add to an existing index, whose segments stay as they are.
        progress: called with the number of rows in every piece that is done.

    Raises:
        DataProblem: a column is missing, `out` exists (or, with `add`, does not), or no song is left.
    """
    try:
        check_columns(library)
        manifest = read_manifest(out) if add else new_manifest(sketch)
    except LibraryError as error:
        raise DataProblem(str(error)) from error
    if out.exists() and not add:
        raise DataProblem(f"{out} exists; add songs to it with --add, or choose another --out")
    sketch = sketch_of(manifest)
    staging = out.parent / f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}"
    staging.mkdir(parents=True)
    try:
        ids = _ids(out, manifest)
        with naming(out):
            done, skipped = _write_segments(library, staging, sketch, resources, manifest, ids, progress)
        if not done.songs:
            raise DataProblem(f"{library}: no song to index; skipped: {dict(done.skipped) or 'none'}")
        with naming(out):
            _publish(staging, out, manifest, skipped)
        return done
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _ids(index: Path, manifest: dict[str, Any]) -> set[str]:
    """Ids of all songs that an index already contains."""
    ids: set[str] = set()
    for segment in manifest["segments"]:
        with pa.memory_map(str(index / SEGMENTS / segment["name"] / SONGS)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                ids.update(reader.get_batch(number).column("id").to_pylist())
    return ids


def _write_segments(
    library: Path,
    staging: Path,
    sketch: Sketch,
    resources: ResourceConfig,
    manifest: dict[str, Any],
    ids: set[str],
    progress: Callable[[int], None] | None,
) -> tuple[Indexed, list[dict[str, str]]]:
    done = Indexed()
    skipped: list[dict[str, str]] = []
    tables: list[pa.Table] = []
    keys: list[np.ndarray] = []

    def flush() -> None:
        if not keys:
            return
        name = f"{len(manifest['segments']):06d}-{secrets.token_hex(4)}"
        write_segment(staging / SEGMENTS / name, pa.concat_tables(tables), Postings.build(keys))
        manifest["segments"].append({"name": name, "songs": len(keys)})
        done.songs += len(keys)
        tables.clear()
        keys.clear()

    pieces = -(-pq.read_metadata(library).num_rows // _ROWS_PER_TASK)
    with (
        cluster(resources) if pieces > 1 else nullcontext()
    ):  # a single piece is done before a cluster would have started
        read = _on_all_cores if pieces > 1 else _one_by_one
        for rows, songs, their_keys in read(_pieces(library, ids, skipped), sketch):
            tables.append(songs)
            keys += their_keys
            if progress:
                progress(rows)
            if len(keys) >= _SEGMENT_SONGS:
                flush()
    flush()
    done.skipped.update(skip["reason"] for skip in skipped)
    return done, skipped


def _pieces(library: Path, ids: set[str], skipped: list[dict[str, str]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """For each piece of the library, its number of rows, and the rows that can be indexed."""
    for batch in pq.ParquetFile(library).iter_batches(_ROWS_PER_TASK, columns=list(COLUMNS)):
        texts = pa.table({name: pc.cast(batch.column(name), pa.string()) for name in COLUMNS}).to_pylist()
        yield len(texts), _sound(texts, ids, skipped)


_Piece = tuple[int, list[dict[str, Any]]]
_Read = tuple[int, pa.Table, list[np.ndarray]]


def _one_by_one(pieces: Iterable[_Piece], sketch: Sketch) -> Iterator[_Read]:
    """Rows, songs and keys of every piece, computed in-process."""
    for rows, sound in pieces:
        yield rows, *_read_songs(sound, sketch)


def _on_all_cores(pieces: Iterable[_Piece], sketch: Sketch) -> Iterator[_Read]:
    """The same in the same order, computed on all cores of the cluster."""
    task = ray.remote(_read_songs)
    at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[tuple[int, Any]] = deque()
    for rows, sound in pieces:
        waiting.append((rows, task.remote(sound, sketch)))
        if len(waiting) >= at_once:
            done, reference = waiting.popleft()
            yield done, *ray.get(reference)
    for done, reference in waiting:
        yield done, *ray.get(reference)


def _sound(rows: list[dict[str, Any]], ids: set[str], skipped: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The rows that can be indexed; the others are added to `skipped`."""
    sound = []
    for row in rows:
        if reason := _fault(row, ids):
            skipped.append({"id": row["id"] or "", "reason": reason})
        else:
            ids.add(row["id"])
            sound.append(row)
    return sound


def _fault(row: dict[str, Any], ids: set[str]) -> str | None:
    if not row["id"]:
        return "no id"
    if row["id"] in ids:
        return "duplicate id"
    if len(row["text"] or "") > LONGEST_TEXT:
        return f"text of more than {LONGEST_TEXT} characters"
    if row["language"] and known(row["language"]) is None:
        return f"unknown language {row['language'][:20]}"
    if not parse(row["text"] or ""):
        return "no lines"
    return None


def _read_songs(rows: list[dict[str, Any]], sketch: Sketch) -> tuple[pa.Table, list[np.ndarray]]:
    """Songs with their phones, and their keys; runs in a worker."""
    songs = [
        LyricSong.read(
            row["id"],
            row["text"],
            row["language"],
            **{name: row[name] or "" for name in ("title", "artist", "license")},
        )
        for row in rows
    ]
    table = song_table(songs) if songs else SONG_SCHEMA.empty_table()
    return table, [sketch.keys("".join(song.phones)) for song in songs]


def _publish(staging: Path, out: Path, manifest: dict[str, Any], skipped: list[dict[str, str]]) -> None:
    """Move what was built into place, the manifest last."""
    file = staging / MANIFEST
    file.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    before = out / _SKIPPED
    listed = [pq.read_table(before)] if before.is_file() else []
    pq.write_table(pa.concat_tables([*listed, pa.Table.from_pylist(skipped, _SKIPPED_SCHEMA)]), staging / _SKIPPED)
    if not out.exists():
        move_durably(staging, out)
        return
    for segment in (staging / SEGMENTS).iterdir():
        move_durably(segment, out / SEGMENTS / segment.name)
    move_durably(staging / _SKIPPED, out / _SKIPPED)
    move_durably(file, out / MANIFEST)
