"""Voices on disk: the log-mel bands of each song's sung segments, computed once and read one at a time."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.files import write_durably, written_whole
from training.run.run_folder import RunProblem

_SEGMENT = pa.schema(
    [("track_id", pa.string()), ("bands", pa.int32()), ("frames", pa.int32()), ("log_mel", pa.large_binary())]
)
_SONG = pa.schema(
    [*((name, pa.string()) for name in ("track_id", "label", "license", "file")), ("segments", pa.int32())]
)
_SONGS = "songs.parquet"
_FAILED = "failed.json"


@dataclass(frozen=True)
class Voice:
    """The stored voice of a song.

    Attributes:
        track_id: the song's id.
        label: name of the singer.
        license: the song's licence.
        file: name of the file that holds the segments.
        segments: number of segments; 0 if nobody sings.
    """

    track_id: str
    label: str
    license: str
    file: str
    segments: int


class SegmentStore:
    """A folder of voices: one file per song with one row group per segment, and the list of songs to train on.

    A file is written under a temporary name and renamed, so that it is complete or absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, track_id: str, recipe: str, *, label: str, license: str = "unknown") -> Voice | None:
        """The stored voice of a song, if its segments were made with this recipe; else None.

        Args:
            track_id: the song's id.
            recipe: see `add`.
            label: name of the singer, for the result.
            license: the song's licence, for the result.
        """
        name = _file_name(track_id, recipe)
        with suppress(OSError, pa.ArrowException):
            return Voice(track_id, label, license, name, pq.read_metadata(self.folder / name).num_row_groups)
        return None

    def add(self, track_id: str, recipe: str, segments: Iterable[np.ndarray]) -> None:
        """Store the segments of a song.

        Args:
            track_id: the song's id.
            recipe: everything besides the song that the segments depend on.
            segments: log-mel bands [bands, frames] of each, stored as float16; none if nobody sings.
        """
        path = self.folder / _file_name(track_id, recipe)
        with written_whole(path) as draft, pq.ParquetWriter(draft, _SEGMENT, compression="zstd") as file:
            for log_mel in segments:
                bands, frames = log_mel.shape
                data = np.ascontiguousarray(log_mel, "<f2").tobytes()
                row = {"track_id": track_id, "bands": bands, "frames": frames, "log_mel": data}
                file.write_table(pa.Table.from_pylist([row], _SEGMENT))

    def choose(self, songs: Sequence[Voice], failed: Mapping[str, str]) -> None:
        """Write the list of songs to train on, and delete the segments of all others.

        Args:
            songs: songs to train on.
            failed: track id -> why a song has no segments.
        """
        ordered = sorted(songs, key=lambda song: song.track_id)
        write_durably(self.folder / _FAILED, json.dumps(dict(failed), indent=2).encode())
        with written_whole(self.folder / _SONGS) as draft:
            pq.write_table(pa.Table.from_pylist([vars(song) for song in ordered], _SONG), draft)
        wanted = {_SONGS, _FAILED, *(song.file for song in songs)}
        for path in self.folder.iterdir():
            if path.name not in wanted:
                path.unlink()

    def songs(self) -> list[Voice]:
        """The songs to train on, sorted by track id.

        Raises:
            RunProblem: the list is missing or unreadable.
        """
        try:
            return [Voice(**row) for row in pq.read_table(self.folder / _SONGS).to_pylist()]
        except (OSError, pa.ArrowException, TypeError) as error:
            raise RunProblem(f"{self.folder} has no list of songs: {error}") from error

    def failed(self) -> dict[str, str]:
        """Songs that could not be prepared: track id -> why."""
        path = self.folder / _FAILED
        failed: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        return failed

    def read(self, song: Voice, number: int) -> np.ndarray:
        """One segment of a song, float32 [bands, frames].

        Raises:
            RunProblem: it cannot be read.
        """
        path = self.folder / song.file
        try:
            with pq.ParquetFile(path) as file:
                row = file.read_row_group(number).to_pylist()[0]
            return np.frombuffer(row["log_mel"], "<f2").reshape(row["bands"], row["frames"]).astype(np.float32)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise RunProblem(f"{path}: {error}; the run's voices are damaged: start again in another --out") from error


def _file_name(track_id: str, recipe: str) -> str:
    return hashlib.blake2b(f"{recipe}\n{track_id}".encode(), digest_size=16).hexdigest() + ".parquet"
