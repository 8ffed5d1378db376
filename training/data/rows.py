"""Reads single songs from shards and features: only the needed columns and row groups."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from schemas.storage.options import scheme
from training.data.dataset_file import DatasetFile
from training.data.errors import CorruptShard
from training.data.song_index import Row, SongIndex

# Per process: a footer takes 0.3 MB of a shard, and much less of a feature. In a bucket each costs a request, and a
# row group with its footer known another one.
_FOOTERS = 4096
_OPEN_FILES = 128  # of folders; a file of a bucket would hold what was last read of it in memory


class RowReader:
    """Reads rows of an index, in a worker process or in the trainer's."""

    def __init__(self, songs: SongIndex, ssl: Sequence[str], more: Sequence[str] = ()) -> None:
        """Set up the columns to read; no file is opened yet.

        Args:
            songs: the index.
            ssl: encoders whose states to read.
            more: further columns to read from the shards.
        """
        self._in_shard = ["lyric_tokens.ids", "speaker.embedding", *more]
        self._units = songs.units
        self._unit, self._row = songs.column("unit"), songs.column("row")
        self._columns = {
            "latents": ["latents.data"],
            "text_embedding": [f"text_embedding.list.element.{name}" for name in ("variant", "dim", "data")],
            "ssl": [f"ssl.{encoder}.{name}" for encoder in ssl for name in ("scales", "data")],
        }

    def read(self, songs: Sequence[int]) -> Iterator[tuple[int, Row | CorruptShard]]:
        """Yields each song's index with its row, or with the problem of its file, in any order.

        A row group is decoded once for all its songs.
        """
        units = self._unit[songs]
        for unit in np.unique(units):
            own = np.asarray(songs)[units == unit]
            try:
                rows: list[Row] = self._read_unit(unit, self._row[own])
                yield from zip(own.tolist(), rows, strict=True)
            except CorruptShard as problem:
                yield from ((song, problem) for song in own.tolist())

    def _read_unit(self, number: int, rows: np.ndarray) -> list[Row]:
        unit = self._units[number]
        columns = self._read_file(unit.shard, self._in_shard, rows)
        for name, file in unit.features.items():
            columns |= self._read_file(file, self._columns[name], rows)
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _read_file(self, file: DatasetFile, columns: Sequence[str], rows: np.ndarray) -> dict[str, list[Any]]:
        """Top-level column -> the rows' values."""
        footer: pq.FileMetaData = self._footer(file)
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        group_of_row = np.searchsorted(starts, rows, side="right") - 1
        opened = self._open(file) if scheme(file.store.url) else self._kept_open(file)
        values: dict[int, Mapping[str, Any]] = {}
        for group in np.unique(group_of_row):
            table = file.read_group(opened, int(group), columns)
            for row in rows[group_of_row == group]:
                values[row] = {name: table[name][int(row - starts[group])] for name in table.column_names}
        return {name: [values[row][name] for row in rows] for name in table.column_names}

    def _open(self, file: DatasetFile) -> pq.ParquetFile:
        return file.opened(self._footer(file))

    @cached_property  # created in the process that reads
    def _kept_open(self) -> Any:
        return lru_cache(_OPEN_FILES)(self._open)

    @cached_property
    def _footer(self) -> Any:
        return lru_cache(_FOOTERS)(DatasetFile.footer)
