"""Voices on disk: for each song the log-mel bands of its sung segments, made once and read piece by piece."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
    """A song whose voice is known.

    Attributes:
        track_id: its id.
        label: who sings.
        license: that it came with.
        file: its segments.
        segments: how many there are; none where nobody sings.
    """

    track_id: str
    label: str
    license: str
    file: str
    segments: int


class SegmentStore:
    """A folder of voices: a file a song, one segment a row group, and the list of songs to train on.

    A file is written under another name and renamed, so that a song is there or is not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, track_id: str, recipe: str, *, label: str, license: str = "unknown") -> Voice | None:
        """A song whose segments were made by this recipe, if it has been added, with what is known of it."""
        name = _file_name(track_id, recipe)
        with suppress(OSError, pa.ArrowException):
            return Voice(track_id, label, license, name, pq.read_metadata(self.folder / name).num_row_groups)
        return None

    def add(self, track_id: str, recipe: str, segments: Iterable[np.ndarray]) -> None:
        """Store the segments of a song, each [bands, frames]; none for one that nobody sings in.

        Args:
            track_id: of the song.
            recipe: what the segments depend on besides the song.
            segments: log-mel bands; kept as float16.
        """
        path = self.folder / _file_name(track_id, recipe)
        draft = path.with_suffix(".partial")
        with pq.ParquetWriter(draft, _SEGMENT, compression="zstd") as file:
            for log_mel in segments:
                bands, frames = log_mel.shape
                data = np.ascontiguousarray(log_mel, "<f2").tobytes()
                row = {"track_id": track_id, "bands": bands, "frames": frames, "log_mel": data}
                file.write_table(pa.Table.from_pylist([row], _SEGMENT))
        draft.replace(path)

    def choose(self, songs: Sequence[Voice], failed: Mapping[str, str]) -> None:
        """Write down which songs to train on; segments of others are deleted.

        Args:
            songs: to train on.
            failed: track id -> why a song has no segments.
        """
        ordered = sorted(songs, key=lambda song: song.track_id)
        draft = self.folder / f"{_SONGS}.partial"
        pq.write_table(pa.Table.from_pylist([vars(song) for song in ordered], _SONG), draft)
        (self.folder / _FAILED).write_text(json.dumps(dict(failed), indent=2))
        draft.replace(self.folder / _SONGS)
        wanted = {_SONGS, _FAILED, *(song.file for song in songs)}
        for path in self.folder.iterdir():
            if path.name not in wanted:
                path.unlink()

    def songs(self) -> list[Voice]:
        """The songs to train on, by their ids.

        Raises:
            RunProblem: they have not been written down.
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
