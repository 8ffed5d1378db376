"""Crops of recordings, in an order that depends only on the seed and the step's number.

Each crop of a batch comes from another song. A song is used for several steps before the next one is decoded, and the
songs of a batch are replaced one at a time. Within an epoch, a song is visited in proportion to its length.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stages.nets.codec.codec import SAMPLES_PER_FRAME
from training.data.recordings import FULL_SCALE, RATE_HZ, AudioSource


@dataclass(frozen=True)
class Crops:
    """A batch of crops.

    Attributes:
        waveforms: float32 [B, 2, samples] at 44.1 kHz, a whole number of latent frames long.
        track_ids: track id of each crop.
    """

    waveforms: Tensor
    track_ids: Sequence[str]


@dataclass(frozen=True)
class CropStart:
    """Where a crop starts: the song's index and the first sample."""

    song: int
    start: int


class CropOrder:
    """Determines which crops make up the batch of a step; decodes nothing.

    Args:
        songs: indices of the songs to draw from.
        samples: length of each of these songs, in samples.
        length: length of a crop, in samples.
        batch_size: crops per batch.
        per_visit: crops drawn from a song before the next one.
        seed: determines the whole order.
    """

    def __init__(
        self, songs: Sequence[int], samples: Sequence[int], *, length: int, batch_size: int, per_visit: int, seed: int
    ) -> None:
        self._samples = dict(zip(songs, samples, strict=True))
        self._length = length
        self._batch_size = batch_size
        self._per_visit = per_visit
        self._seed = seed
        visits = [max(1, round(samples / (length * per_visit))) for samples in self._samples.values()]
        self._visits = np.repeat(np.array(songs), visits)
        self._shuffled = lru_cache(2)(self._shuffle)

    def __call__(self, step: int) -> list[CropStart]:
        """Where the crops of a step start."""
        return [self._place(step, slot) for slot in range(self._batch_size)]

    def _place(self, step: int, slot: int) -> CropStart:
        ahead = slot * self._per_visit // self._batch_size
        visit = (step + ahead) // self._per_visit * self._batch_size + slot
        epoch, number = divmod(visit, len(self._visits))
        song = int(self._shuffled(epoch)[number])
        last = max(0, self._samples[song] - self._length)
        start = np.random.default_rng([self._seed, 1, step, slot]).integers(last + 1)
        return CropStart(song, int(start))

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 0, epoch]).permutation(self._visits)


class CropReader:
    """Reads the batches of a `CropOrder`, and prefetches the next one in a thread.

    Args:
        audio: recordings to read from.
        order: which crops to read.
        length: length of a crop, in samples.
    """

    def __init__(self, audio: AudioSource, order: CropOrder, length: int) -> None:
        self._audio, self._order, self._length = audio, order, length
        self._thread = ThreadPoolExecutor(1, "crops")
        self._next: tuple[int, Future[Crops]] | None = None

    def __call__(self, step: int) -> Crops:
        """The batch of a step.

        Raises:
            UnreadableAudio: a song cannot be decoded.
        """
        ahead = self._next
        batch = ahead[1].result() if ahead and ahead[0] == step else self._read(step)
        self._next = (step + 1, self._thread.submit(self._read, step + 1))
        return batch

    def close(self) -> None:
        """Cancel the prefetch."""
        self._thread.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Crops:
        return read_crops(self._audio, self._order(step), self._length)


def read_crops(audio: AudioSource, places: Sequence[CropStart], length: int) -> Crops:
    """Read crops that start at `places`; one that reaches beyond its song's end is filled with silence.

    Raises:
        UnreadableAudio: a song cannot be decoded.
    """
    waveforms = np.zeros((len(places), 2, length), np.float32)
    for waveform, place in zip(waveforms, places, strict=True):
        heard = audio.read(place.song)[:, place.start : place.start + length]
        waveform[:, : heard.shape[1]] = heard / np.float32(FULL_SCALE)
    return Crops(torch.from_numpy(waveforms), [audio.recordings[place.song].track_id for place in places])


def spread(songs: Sequence[int], samples: Sequence[int], length: int, count: int) -> list[CropStart]:
    """Fixed crop starts: at most `count`, equally many per song, evenly spaced over its length."""
    places = []
    for number, (song, total) in enumerate(zip(songs, samples, strict=True)):
        own = count // len(songs) + (number < count % len(songs))
        last = max(0, total - length)
        starts = [round(last * (place + 0.5) / own) for place in range(own)]
        places += [CropStart(song, start) for start in dict.fromkeys(starts)]
    return places


def whole_frames(seconds: float) -> int:
    """Samples in the nearest whole number of latent frames, at least one."""
    return max(1, round(seconds * RATE_HZ / SAMPLES_PER_FRAME)) * SAMPLES_PER_FRAME
