"""Which songs of a lyric library share passages with a piece of IPA: two kinds of sketch, one inverted index.

A sketch turns phones into 64-bit keys; the index lists the songs of every key and weights a shared key by its rarity. A
transcript covers only part of its song, so what counts is how much of the query a song contains, not the reverse.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

_ARRAYS = ("keys", "offsets", "songs")
_BUDGET = 200_000  # index entries that a query reads, rarest keys first
_COMMON = 0.01  # a key shared by more than this fraction of the songs tells nothing ...
_FEW = 100  # ... unless that is no more than this many songs
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Sketch(Protocol):
    """Phones to keys. An index records its fields, so that queries are sketched the way the songs were."""

    engine: ClassVar[str]

    def keys(self, phones: str) -> np.ndarray:
        """Distinct keys of a string of phones without spaces: uint64, sorted."""


@dataclass(frozen=True)
class ContainmentSketch:
    """FracMinHash: the shingles whose hash falls into a fixed fraction of the hash range.

    Unlike with MinHash, the keys of a part are a subset of the whole's keys, whatever the lengths.

    Source: Irber et al., "Lightweight compositional analysis of metagenomes with FracMinHash", 2022.

    Attributes:
        shingle: phones per shingle.
        keep_one_in: one in this many shingles is kept.
        seed: seed of the hash.
    """

    engine: ClassVar[str] = "containment"
    shingle: int = 5
    keep_one_in: int = 4
    seed: int = 1

    def keys(self, phones: str) -> np.ndarray:
        """See `Sketch.keys`; a text shorter than a shingle has none."""
        hashes = np.unique(_shingle_hashes(phones, self.shingle, self.seed))
        return hashes[hashes <= np.uint64((2**64 - 1) // self.keep_one_in)]


@dataclass(frozen=True)
class LshSketch:
    """MinHash of the whole text in bands: songs collide if they agree in all rows of a band.

    Source: Broder 1997; Leskovec et al., "Mining of Massive Datasets", chapter 3; MinHash by the library datasketch.

    Attributes:
        shingle: phones per shingle.
        num_perm: permutations of a MinHash.
        rows: hash values per band; more make a hit rarer. See `lsh_rows`.
        seed: seed of the permutations.
    """

    engine: ClassVar[str] = "lsh"
    shingle: int = 4
    num_perm: int = 128
    rows: int = 2
    seed: int = 1

    def keys(self, phones: str) -> np.ndarray:
        """See `Sketch.keys`; a key is the hash of a band and its number."""
        shingles = {phones[start : start + self.shingle].encode() for start in range(len(phones) - self.shingle + 1)}
        if not shingles:
            return np.empty(0, np.uint64)
        from datasketch import MinHash  # here because it takes long to import and the default engine does not need it

        sketch = MinHash(self.num_perm, seed=self.seed, scheme="affine32")
        sketch.update_batch(sorted(shingles))
        bands = self.num_perm // self.rows
        values = sketch.hashvalues[: bands * self.rows].astype(np.uint64).reshape(bands, self.rows)
        return np.unique(_mix(np.arange(bands, dtype=np.uint64), values.T))


SKETCHES: dict[str, type[Any]] = {sketch.engine: sketch for sketch in (ContainmentSketch, LshSketch)}


def lsh_rows(jaccard: float, recall: float, num_perm: int = 128) -> int:
    """The most rows per band at which texts of Jaccard similarity `jaccard` collide with probability `recall`."""
    for rows in count(2):
        if 1 - (1 - jaccard**rows) ** (num_perm // rows) < recall:
            return rows - 1
    raise AssertionError


def describe(sketch: Sketch) -> dict[str, Any]:
    """Engine and fields of a sketch, as an index records them."""
    return {"engine": sketch.engine, **asdict(sketch)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Postings:
    """Songs by key: those of `keys[i]` are `songs[offsets[i]:offsets[i + 1]]`. Arrays in memory or memory-mapped.

    Attributes:
        keys: uint64 [keys], sorted.
        offsets: uint64 [keys + 1].
        songs: uint32 [offsets[-1]], numbers of songs.
        song_count: number of songs in total.
    """

    keys: np.ndarray
    offsets: np.ndarray
    songs: np.ndarray
    song_count: int

    @classmethod
    def build(cls, keys_of_songs: Sequence[np.ndarray]) -> "Postings":
        """Index songs by their keys; a song's number is its position."""
        lengths = [len(keys) for keys in keys_of_songs]
        every = np.concatenate([*keys_of_songs, np.empty(0, np.uint64)])
        songs = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
        order = np.argsort(every, kind="stable")
        keys, starts = np.unique(every[order], return_index=True)
        offsets = np.append(starts, len(every)).astype(np.uint64)
        return cls(keys, offsets, songs[order], len(lengths))

    def save(self, folder: Path) -> None:
        """Write the arrays into an existing folder."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def open(cls, folder: Path, song_count: int) -> "Postings":
        """Map the arrays of a folder; processes that do so share them through the page cache."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        return cls(**arrays, song_count=song_count)

    @cached_property
    def _common(self) -> int:
        return max(_FEW, int(_COMMON * self.song_count))

    def best(self, keys: np.ndarray, most: int) -> list[tuple[int, float]]:
        """At most `most` songs that share keys, each with its share 0..1 of the keys' weight, best first.

        A key's weight is the logarithm of its rarity; a key that no song has weighs as much as one of a single song.
        """
        if not len(keys) or not len(self.keys):
            return []
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = places[self.keys[places] == keys]
        starts = self.offsets[known].astype(np.int64)
        lengths = self.offsets[known + 1].astype(np.int64) - starts
        telling = np.flatnonzero(lengths <= self._common)
        rarest = telling[np.argsort(lengths[telling], kind="stable")]
        rarest = rarest[np.cumsum(lengths[rarest]) <= _BUDGET]
        if not len(rarest):
            return []
        starts, lengths = starts[rarest], lengths[rarest]
        weights = np.log1p(self.song_count / lengths)
        unknown = np.log1p(self.song_count) * (len(keys) - len(known))
        entries = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) + np.arange(lengths.sum())
        votes = np.bincount(self.songs[entries], np.repeat(weights, lengths)) / (weights.sum() + unknown)
        songs = np.flatnonzero(votes)
        if len(songs) > most:
            songs = songs[votes[songs] >= np.partition(votes[songs], -most)[-most]]
        best = songs[np.lexsort((songs, -votes[songs]))][:most]
        return [(int(song), float(votes[song])) for song in best]


def _shingle_hashes(phones: str, shingle: int, seed: int) -> np.ndarray:
    letters = np.frombuffer(phones.encode("utf-32-le"), np.uint32).astype(np.uint64)
    if len(letters) < shingle:
        return np.empty(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(letters, shingle)
    return _mix(np.full(len(windows), seed, np.uint64), windows.T)


def _mix(start: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Hash of `start` [n] and `parts` [rows, n], spread over all 64 bits by splitmix64's finalizer (Steele 2014)."""
    state = _spread(start + _GOLDEN)
    for part in parts:
        state = _spread(state ^ (part * _GOLDEN + _GOLDEN))
    return state


def _spread(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
