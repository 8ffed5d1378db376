"""The recordings of curated datasets, decoded again from the original files."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.marks import read_marks
from pipeline.dataset.stats import connect
from pipeline.errors import DataProblem
from pipeline.ingest.identity import track_id
from schemas.dataset import Layout
from stages import pcm
from stages.base import TrackError
from stages.decode import DecodeParams, decode_file
from training.data import recordings
from training.data.recordings import Recording, UnreadableAudio

_CACHE_BYTES = 1 << 30
# Curation accepted these very bytes, so nothing it tolerated is an error here.
_AS_CURATED = DecodeParams(limit_s=math.inf, missing_s=math.inf, lost_ratio=1.0)
_FACTS = ("source", "license", "artist", "language")


class DatasetAudio:
    """The kept songs of datasets as an `AudioSource`, each track once.

    Attributes:
        table: `track_id`, `uri`, `samples`, `source`, `license`, `artist` and `language` (null if unknown), in the
            order of `recordings`.
        left_out: number of rows that do not match the condition, are marked `drop` or are duplicates.
    """

    def __init__(self, datasets: Sequence[str], where: str | None = None, *, cache_bytes: int = _CACHE_BYTES) -> None:
        """List the songs; nothing is decoded yet.

        Args:
            datasets: folders or URLs of buckets that `songmill curate` wrote.
            where: SQL condition on the shards' columns.
            cache_bytes: size of the cache of decoded songs; it always holds the last song read.

        Raises:
            NoDataset: a place holds no dataset.
            DataProblem: the condition is not valid SQL, or no song is left.
        """
        chosen = [_songs(dataset, where) for dataset in datasets]
        rows = sum(total for _, total in chosen)
        self.table = _each_once(pa.concat_tables([table for table, _ in chosen]))
        self.left_out = rows - self.table.num_rows
        if not self.table.num_rows:
            why = f": none of {rows} fits {where!r}" if where else ""
            raise DataProblem(f"{', '.join(datasets)}: no song is left to train on{why}")
        self._uris = self.table["uri"].to_pylist()
        self._songs = _Cache(self._decode, cache_bytes)

    @cached_property
    def recordings(self) -> Sequence[Recording]:
        """Every track once, by track id."""
        columns = (self.table["track_id"].to_pylist(), self.table["samples"].to_pylist())
        return [Recording(track, samples) for track, samples in zip(*columns, strict=True)]

    @cached_property
    def fingerprint(self) -> str:
        """See `training.data.recordings.fingerprint`."""
        return recordings.fingerprint(self.recordings)

    def read(self, index: int) -> np.ndarray:
        """A song, int16 [2, samples] at 44.1 kHz; see `AudioSource`."""
        return self._songs(index)

    def _decode(self, index: int) -> np.ndarray:
        recording, uri = self.recordings[index], self._uris[index]
        try:
            if track_id(uri) != recording.track_id:
                raise UnreadableAudio(
                    recording.track_id,
                    f"{uri}: its bytes are not those that were curated; restore the file, or curate it again",
                )
            decoded = decode_file(uri, {"pcm"}, _AS_CURATED).pcm
        except TrackError as problem:
            advice = "restore the file, or leave it out with --where"
            raise UnreadableAudio(recording.track_id, f"{problem}; {advice}") from problem
        assert decoded is not None  # since there is no limit
        return _of_length(np.frombuffer(decoded, "<i2").reshape(-1, pcm.CHANNELS).T, recording.samples)


class _Cache:
    """A least-recently-used cache of decoded songs, limited in bytes."""

    def __init__(self, read: Callable[[int], np.ndarray], limit: int) -> None:
        self._read, self._limit = read, limit
        self._songs: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, index: int) -> np.ndarray:
        with self._lock:
            song = self._songs.pop(index, None)
            if song is None:
                song = self._read(index)
            self._songs[index] = song
            while len(self._songs) > 1 and sum(kept.nbytes for kept in self._songs.values()) > self._limit:
                self._songs.popitem(last=False)
            return song


def _songs(dataset: str, where: str | None) -> tuple[pa.Table, int]:
    """The rows of a dataset that match the condition and are not marked `drop`, and its number of rows."""
    layout = Layout.at(dataset)
    layout.require()
    with connect(layout) as connection:
        try:
            total = connection.sql("select count(*) from tracks").fetchall()[0][0]
            if not total:
                raise DataProblem(f"{dataset} has no kept songs: `songmill inspect {dataset}` says why")
            rows = connection.sql("from tracks")
            chosen = rows.filter(where) if where else rows
            seconds = f"cast(round(audio.duration_s * {recordings.RATE_HZ}) as bigint) as samples"
            songs = chosen.project(f"row_id, track_id, uri, {seconds}, {', '.join(_FACTS)}").to_arrow_table()
        except duckdb.Error as problem:
            raise DataProblem(f"{f'--where {where!r}' if where else dataset}: {_without_query(problem)}") from problem
    dropped = [row_id for row_id, mark in read_marks(layout).items() if mark.mark == "drop"]
    kept = pc.invert(pc.is_in(songs["row_id"], pa.array(dropped, pa.string())))
    return songs.filter(kept).drop_columns("row_id"), total


def _each_once(songs: pa.Table) -> pa.Table:
    with duckdb.connect() as connection:
        numbered = connection.from_arrow(songs).project(
            "*, row_number() over (partition by track_id order by uri) as copy"
        )
        return numbered.filter("copy = 1").order("track_id").project("* exclude copy").to_arrow_table()


def _without_query(problem: duckdb.Error) -> str:
    return str(problem).partition("\n\nLINE")[0]


def _of_length(samples: np.ndarray, length: int) -> np.ndarray:
    """Pad or cut to `length`: resampling may give a sample more or less than the duration suggests."""
    missing = length - samples.shape[1]
    samples = np.pad(samples, ((0, 0), (0, missing))) if missing > 0 else samples[:, :length]
    samples.setflags(write=False)
    return samples
