"""Where a song's features come from: files beside its shard, or a maker that computes them whenever they are read.

`training` decodes no audio: the pipeline gives it the maker.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from training.data.errors import CorruptShard
from training.data.units import Unit

if TYPE_CHECKING:
    from training.data.config import DataConfig
    from training.data.feature_summary import Facts
    from training.data.song_index import Songs

# One song: column -> Arrow scalar, whose binaries are views of what was read.
Row = Mapping[str, Any]


class RowSource(Protocol):
    """Gives songs their rows: what the shard has of them, and their features."""

    def read(self, songs: Sequence[int]) -> Iterator[tuple[int, Row | CorruptShard]]:
        """Songs, each once and in any order, with its row or with what is wrong with its file."""


class FeatureMaker(Protocol):
    """Makes the features of songs that have none beside their shards. Pickles, for it goes to worker processes."""

    def facts(self, unit: Unit, config: "DataConfig") -> "Facts":
        """What the features of a shard's rows will be, known without making them.

        Raises:
            CorruptShard: the shard cannot be read.
        """

    def rows(self, songs: "Songs") -> RowSource:
        """Makes the rows of these songs."""
