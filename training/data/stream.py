"""The stream of batches that a trainer consumes, and its resumable position."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any

import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from schemas.storage.options import scheme
from stages.nets.codec.codec import LATENT_HZ
from training.data.batch import Batch
from training.data.collate import Crop, Sample, collate, decode
from training.data.config import ORDERING, DataConfig
from training.data.epoch import Epoch
from training.data.errors import CorruptShard, DatasetProblem
from training.data.hours import KINDS, HoursSeen
from training.data.rows import RowReader
from training.data.song_index import Row, RowSource, SongIndex, Split

_PREFETCHED = 4  # batches per worker process


class ShardStream:
    """Batches of one rank. The sequence depends only on the songs, the configuration and the world size.

    So a position is two numbers, epoch and batch, and worker processes have no state. The training split never ends;
    the validation split is one pass, the same each time.

    Attributes:
        epoch: epoch of the next batch.
        batch: index of the next batch in the epoch.
        hours: hours of audio trained on, over all ranks.
        skipped: file -> why it could not be read, by this rank or when the songs were indexed.
    """

    def __init__(
        self,
        songs: SongIndex,
        config: DataConfig,
        *,
        split: Split = "train",
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        """Plan the first epoch; nothing is read yet.

        Args:
            songs: from `open_songs`.
            config: how they are cropped and batched.
            split: `train` or `validation`, see `DataConfig.validation_share`.
            rank: rank of this process.
            world_size: number of ranks.
            workers: processes that read ahead; they do not affect the batches.

        Raises:
            DatasetProblem: the split has fewer songs than ranks.
        """
        self.songs = songs.part(split, config.validation_share)
        self.config = config
        self.epoch, self.batch = 0, 0
        self.hours = HoursSeen()
        self.skipped = {problem.path: problem.error for problem in songs.corrupt}
        self._endless = split == "train"
        self._rank, self._world_size, self._workers = rank, world_size, workers
        self._reader = _BatchReader(self.songs, config)
        self._frames = self.songs.column("frames")
        self._plans: dict[int, Epoch] = {}
        if not len(self.songs):
            raise DatasetProblem(f"no song falls into the {split} split: see validation_share")
        self.plan(0)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the current position on; a new iterator continues after the last batch that was yielded.

        Raises:
            CorruptShard: a file cannot be read, and `on_corrupt` is `stop`.
            DatasetProblem: no song of a whole epoch can be read.
        """
        loader: Iterable[_Read] = DataLoader(
            self._reader,
            sampler=self._places(),
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=_PREFETCHED if self._workers else None,
            multiprocessing_context=self._context() if self._workers else None,
            generator=torch.Generator(),  # the default draws from the global one, which the trainer's steps depend on
        )
        for read in loader:
            self._note(read.problems)
            batch = read.batch or self._next_readable(read.place)
            if self._endless:
                self.epoch, self.batch = read.place.epoch, read.place.step + 1
                self._count(read)
            yield batch

    def plan(self, epoch: int) -> Epoch:
        """The batches of an epoch, on all ranks."""
        if epoch not in self._plans:
            self._plans = {number: plan for number, plan in self._plans.items() if number >= self.epoch}
            self._plans[epoch] = Epoch(self._frames, self.config, epoch, self._world_size)
        return self._plans[epoch]

    def state_dict(self) -> dict[str, Any]:
        """The position, the hours seen, and what the position depends on, as JSON values."""
        return {"epoch": self.epoch, "batch": self.batch, "hours": self.hours.as_dict(), "order": self._order()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the position of another stream over the same songs.

        Raises:
            DatasetProblem: songs, configuration or world size differ, so that the position would not mean the same.
        """
        own = self._order()
        changed = [
            f"{name} ({state['order'].get(name)} -> {own[name]})"
            for name in own
            if own[name] != state["order"].get(name)
        ]
        if changed:
            raise DatasetProblem(f"the data is not what the run was stopped with: {', '.join(changed)}")
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.hours = HoursSeen(state["hours"])

    def _context(self) -> BaseContext | None:
        """How worker processes start: the client of a bucket does not survive a fork."""
        if not any(scheme(unit.shard.store.url) for unit in self.songs.units):
            return None
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])  # or each worker imports torch
        return context

    def _order(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", include=set(ORDERING))
        made_by = dict(self.songs.models)
        return {**settings, "world_size": self._world_size, "songs": self.songs.fingerprint(), "models": made_by}

    def _places(self) -> Iterator["_StreamPosition"]:
        epoch, first = (self.epoch, self.batch) if self._endless else (0, 0)
        while True:
            for step in range(first, len(self.plan(epoch))):
                yield self._place(epoch, step)
            if not self._endless:
                return
            epoch, first = epoch + 1, 0

    def _place(self, epoch: int, step: int) -> "_StreamPosition":
        return _StreamPosition(epoch, step, self.plan(epoch).steps[step][self._rank].tolist())

    def _note(self, problems: Mapping[int, CorruptShard]) -> None:
        for problem in problems.values():
            if self.config.on_corrupt == "stop":
                raise problem
            self.skipped[problem.path] = problem.error

    def _next_readable(self, place: "_StreamPosition") -> Batch:
        """A replacement for a batch without readable songs, the rank's next one: all ranks must take every step."""
        reader = _BatchReader(self.songs, self.config)
        steps = len(self.plan(place.epoch))
        for offset in range(1, steps):
            read = reader[self._place(place.epoch, (place.step + offset) % steps)]
            self._note(read.problems)
            if read.batch is not None:
                return read.batch
        raise DatasetProblem(
            "no song can be read: " + "; ".join(f"{path}: {why}" for path, why in self.skipped.items())
        )

    def _count(self, read: "_Read") -> None:
        """Count the songs of all ranks, so that any rank's state is complete; also songs that other ranks skipped."""
        step = self.plan(read.place.epoch).steps[read.place.step]
        seen = [song for batch in step for song in batch.tolist() if song not in read.problems]
        seconds = [min(self._frames[song], self.config.max_frames_per_song) / LATENT_HZ for song in seen]
        self.hours.add(self.songs.table.select(KINDS).take(pa.array(seen, pa.int64())).to_pylist(), map(float, seconds))


@dataclass(frozen=True)
class _StreamPosition:
    """A position in the stream and the songs of its batch."""

    epoch: int
    step: int
    songs: Sequence[int]


@dataclass(frozen=True)
class _Read:
    """A batch, or None if none of its songs can be read, and the problems of songs that cannot."""

    place: _StreamPosition
    batch: Batch | None
    problems: Mapping[int, CorruptShard] = field(default_factory=dict)


class _BatchReader(Dataset[_Read]):
    """Position -> batch; runs in a worker process or in the trainer's."""

    def __init__(self, songs: SongIndex, config: DataConfig) -> None:
        self._songs, self._config = songs, config
        maker = songs.maker
        self._rows: RowSource = maker.rows(songs) if maker else RowReader(songs, config.ssl)
        self._keys, self._frames = songs.column("key"), songs.column("frames")

    def __getitem__(self, place: _StreamPosition) -> _Read:
        samples: dict[int, Sample] = {}
        problems: dict[int, CorruptShard] = {}
        for song, row in self._rows.read(place.songs):
            decoded = row if isinstance(row, CorruptShard) else self._decode(song, row, place.epoch)
            if isinstance(decoded, CorruptShard):
                problems[song] = decoded
            else:
                samples[song] = decoded
        readable = [samples[song] for song in place.songs if song in samples]
        return _Read(place, collate(readable, self._songs.widths) if readable else None, problems)

    def _decode(self, song: int, row: Row, epoch: int) -> Sample | CorruptShard:
        known = self._songs.table
        crop = Crop.draw(int(self._keys[song]), int(self._frames[song]), epoch, self._config)
        try:
            return decode(row, known["track_id"][song].as_py(), crop, self._songs.widths, self._config)
        except ValueError as problem:
            unit = self._songs.units[known["unit"][song].as_py()]
            return CorruptShard(str(unit.features.get("latents", unit.shard)), str(problem))
