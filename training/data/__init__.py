"""Training data: batches from the shards that `songmill curate` wrote, in an order that can be resumed.

`open_songs` indexes the songs, `Epoch` plans the batches, `RowReader` reads features, `collate` pads them, and
`ShardStream` ties these together.
"""

from training.data.config import DataConfig
from training.data.epoch import Epoch
from training.data.errors import DatasetProblem
from training.data.hours import HoursSeen
from training.data.song_index import FeatureMaker, SongIndex, Widths
from training.data.song_selection import open_songs
from training.data.stream import ShardStream

__all__ = [
    "DataConfig",
    "DatasetProblem",
    "Epoch",
    "FeatureMaker",
    "HoursSeen",
    "ShardStream",
    "SongIndex",
    "Widths",
    "open_songs",
]
