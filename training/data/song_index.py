"""The songs to train on, as one small table, and where their features come from: files beside a shard, or a maker.

`training` decodes no audio: the pipeline gives it the maker, which computes features whenever they are read.
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

# One song: column -> Arrow scalar, whose binaries are views of what was read.
Row = Mapping[str, Any]


class RowSource(Protocol):
    """Gives songs their rows: what the shard has of them, and their features."""

    def read(self, songs: Sequence[int]) -> Iterator[tuple[int, Row | CorruptShard]]:
        """Songs, each once and in any order, with its row or with what is wrong with its file."""


class FeatureMaker(Protocol):
    """Makes the features of songs that have none beside their shards. Pickles, for it goes to worker processes."""

    def summarize(self, unit: Unit, config: DataConfig) -> FeatureSummary:
        """What the features of a shard's rows will be, known without making them.

        Raises:
            CorruptShard: the shard cannot be read.
        """

    def rows(self, songs: "SongIndex") -> RowSource:
        """Makes the rows of these songs."""


@dataclass(frozen=True)
class Widths:
    """Sizes that a model for these songs must have.

    Attributes:
        text: of the text encoder's states.
        speaker: of the speaker embeddings.
        ssl: encoder -> width of its states.
        ssl_rate_hz: encoder -> rate of its states.
    """

    text: int
    speaker: int
    ssl: Mapping[str, int]
    ssl_rate_hz: Mapping[str, float]


@dataclass(frozen=True)
class SongIndex:
    """The songs to train on, in the order of their track ids: how they are spread over shards changes nothing.

    Attributes:
        table: `track_id`, `unit`, `row` (of the unit), `frames`, `source`, `language`, `license` and `key`, a number
            of the track id's.
        units: where the rows lie.
        widths: see there.
        models: feature -> what made it.
        left_out: why -> how many rows: a condition, a mark, a feature that they lack, or a track that is there already.
        corrupt: units that cannot be read.
        maker: makes the features; None where they are read.
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
        """A column of the table."""
        return np.asarray(self.table[name].to_numpy())

    def part(self, split: Split, validation_share: float) -> "SongIndex":
        """One side of a split that depends on each track's id alone."""
        held_out = self.column("key") < np.uint64(validation_share * 2**64)
        return replace(self, table=self.table.filter(held_out if split == "validation" else ~held_out))

    def longest_lyrics(self) -> int:
        """Ids of the longest lyrics in the shards that hold the songs."""
        with duckdb.connect() as connection:
            shards = connection.read_parquet([str(unit.shard) for unit in self.units], union_by_name=True)
            return int(shards.max("len(lyric_tokens.ids)").fetchall()[0][0] or 0)

    def fingerprint(self) -> str:
        """Hash of the songs and their lengths."""
        digest = hashlib.blake2b(digest_size=16)
        for name in ("key", "frames"):
            digest.update(self.column(name).tobytes())
        return digest.hexdigest()
