"""The index of songs to train on, and the interface for features that are computed rather than stored.

`training` decodes no audio: the pipeline passes a `FeatureMaker`, which computes features whenever they are read.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import duckdb
import numpy as np
import pyarrow as pa

from training.data.config import DataConfig
from training.data.errors import CorruptShard
from training.data.feature_summary import FeatureSummary
from training.data.units import Unit

Split = Literal["train", "validation"]

# One song: column -> Arrow scalar; binary values are views of the buffers that were read.
Row = Mapping[str, Any]


class RowSource(Protocol):
    """Reads songs' rows: the needed columns of the shard, and the features."""

    def read(self, songs: Sequence[int]) -> Iterator[tuple[int, Row | CorruptShard]]:
        """Yields each song's index once, in any order, with its row or with the problem of its file."""


class FeatureMaker(Protocol):
    """Computes features that are not stored beside the shards. Must be picklable: it is sent to worker processes."""

    def summarize(self, unit: Unit, config: DataConfig) -> FeatureSummary:
        """Summarise the features of a shard's rows without computing them.

        Raises:
            CorruptShard: the shard cannot be read.
        """

    def rows(self, songs: "SongIndex") -> RowSource:
        """A source of these songs' rows, with computed features."""


@dataclass(frozen=True)
class Widths:
    """Feature widths, which a model for these songs must match.

    Attributes:
        text: width of the text encoder's states.
        speaker: width of the speaker embeddings.
        ssl: encoder -> width of its states.
        ssl_rate_hz: encoder -> frame rate of its states.
    """

    text: int
    speaker: int
    ssl: Mapping[str, int]
    ssl_rate_hz: Mapping[str, float]


@dataclass(frozen=True)
class SongIndex:
    """The songs to train on, in the order of their track ids, independent of how they are spread over shards.

    Attributes:
        table: `track_id`, `unit` (index into `units`), `row` (in the unit), `frames`, `source`, `language`, `license`
            and `key` (uint64 hash of the track id).
        units: the shards that hold the rows.
        widths: widths of the features.
        models: feature -> the model that computed it.
        left_out: reason -> number of rows: `where`, a mark, a missing feature, or a duplicate track.
        corrupt: units that cannot be read.
        maker: computes the features; None if they are stored.
    """

    table: pa.Table
    units: Sequence[Unit]
    widths: Widths
    models: Mapping[str, str]
    left_out: Mapping[str, int]
    corrupt: Sequence[CorruptShard]
    maker: FeatureMaker | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> np.ndarray:
        """A column of the table, as an array."""
        return np.asarray(self.table[name].to_numpy())

    def part(self, split: Split, validation_share: float) -> "SongIndex":
        """The songs of one split; which split a song is in depends only on its track id."""
        held_out = self.column("key") < np.uint64(validation_share * 2**64)
        return replace(self, table=self.table.filter(held_out if split == "validation" else ~held_out))

    def longest_lyrics(self) -> int:
        """Number of token ids of the longest lyrics in the songs' shards."""
        with duckdb.connect() as connection:
            for store in {unit.shard.store for unit in self.units}:
                store.let_read(connection)
            shards = connection.read_parquet([unit.shard.address for unit in self.units], union_by_name=True)
            return int(shards.max("len(lyric_tokens.ids)").fetchall()[0][0] or 0)

    def fingerprint(self) -> str:
        """Hash of the songs and their lengths."""
        digest = hashlib.blake2b(digest_size=16)
        for name in ("key", "frames"):
            digest.update(self.column(name).tobytes())
        return digest.hexdigest()
