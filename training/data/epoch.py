"""The batches of an epoch: a function of the songs, the seed, the epoch's number and the number of ranks."""

from collections.abc import Iterator, Sequence

import numpy as np

from training.data.config import DataConfig
from training.data.errors import DatasetProblem


class Epoch:
    """Batches of songs of similar length, in steps of one batch per rank.

    Songs are shuffled within buckets of similar length and cut into batches. The batches of one step come from
    neighbouring buckets, so that no rank waits long for another, and the steps are shuffled. Every song is used exactly
    once, unless all batches are single songs and their number is not a multiple of the ranks.

    Attributes:
        steps: song indices of each batch, [steps][ranks].
        left_out: indices of songs not used in this epoch, fewer than there are ranks.
    """

    def __init__(self, frames: np.ndarray, config: DataConfig, number: int, ranks: int = 1) -> None:
        """Plan an epoch.

        Args:
            frames: latent frames of each song.
            config: batch and bucket sizes, seed.
            number: the epoch's number, from 0.
            ranks: number of ranks, each of which takes one batch per step.

        Raises:
            DatasetProblem: there are fewer songs than ranks.
        """
        if len(frames) < ranks:
            raise DatasetProblem(f"{len(frames)} songs are too few for {ranks} ranks: each needs at least one")
        self._lengths = np.minimum(frames, config.max_frames_per_song)
        rng = np.random.default_rng([config.seed, number])
        order = _shuffle_in_buckets(self._lengths, config.bucket_width, rng)
        batches = _split_until_even(_cut(order, self._lengths, config), ranks)
        batches, self.left_out = _drop_until_even(batches, ranks, rng)
        self.steps = [
            [batches[step * ranks + rank] for rank in rng.permutation(ranks)]
            for step in rng.permutation(len(batches) // ranks)
        ]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def padding(self) -> float:
        """Share of the batches' frames that are padding."""
        lengths = [self._lengths[batch] for step in self.steps for batch in step]
        padded = sum(len(batch) * int(batch.max()) for batch in lengths)
        return 1 - sum(int(batch.sum()) for batch in lengths) / padded


def _shuffle_in_buckets(lengths: np.ndarray, width: float, rng: np.random.Generator) -> np.ndarray:
    """Indices by bucket, in random order within each; the bucket edges are random too, so that neighbours vary."""
    buckets = np.floor(np.log(lengths) / np.log1p(width) + rng.random())
    shuffled = rng.permutation(len(lengths))
    return shuffled[np.argsort(buckets[shuffled], kind="stable")]


def _cut(order: np.ndarray, lengths: np.ndarray, config: DataConfig) -> list[np.ndarray]:
    """Cut the order into batches as large as the config allows."""
    return [order[start:end] for start, end in _runs(lengths[order].tolist(), config)]


def _runs(lengths: Sequence[int], config: DataConfig) -> Iterator[tuple[int, int]]:
    start, longest = 0, 0
    for end, length in enumerate(lengths):
        longest = max(longest, length)
        songs = end - start + 1
        if songs > config.batch_size or (config.max_frames is not None and songs * longest > config.max_frames):
            yield start, end
            start, longest = end, length
    yield start, len(lengths)


def _split_until_even(batches: list[np.ndarray], ranks: int) -> list[np.ndarray]:
    """Halve the largest batches until their number is a multiple of the ranks."""
    missing = -len(batches) % ranks
    while missing:
        parts: list[np.ndarray] = []
        biggest = max(len(batch) for batch in batches)
        if biggest == 1:
            break
        for batch in batches:
            if missing and len(batch) == biggest:
                parts += np.array_split(batch, 2)
                missing -= 1
            else:
                parts.append(batch)
        batches = parts
    return batches


def _drop_until_even(
    batches: list[np.ndarray], ranks: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    dropped = set(rng.choice(len(batches), len(batches) % ranks, replace=False).tolist())
    kept = [batch for place, batch in enumerate(batches) if place not in dropped]
    left_out = [batches[place] for place in sorted(dropped)]
    return kept, np.concatenate([np.empty(0, np.int64), *left_out])
