"""Which of a million sketches may resemble each other: MinHash in bands, over all of them at once.

A pair whose minima agree in a whole band shares a bucket and is worth a look; most songs share none with anybody. The
minima are datasketch's, whose scheme is pinned: scans outlive releases. Its index would hold every band of every song
in dictionaries, 20 KB a song; here the bands are sorted one by one.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

ENOUGH = 32  # hashes that a sketch needs before it can resemble anything

# 64 bands of 3 minima: a pair of Jaccard similarity 0.4 is found with probability 0.986, one of 0.3 with 0.83, and one
# of 0.01 (two songs of a style) with 0.00006.
_BANDS, _ROWS = 64, 3
_PIECE = 64  # hashes that are permuted at a time, so that it stays in the cache
_SCHEME, _SEED = "affine32", 1


def shared_buckets(sketches: Sequence[np.ndarray]) -> Mapping[int, list[int]]:
    """Sketch -> the buckets it shares with at least one other; sketches that share none are left out.

    Args:
        sketches: distinct hashes, uint32, of each song; those of fewer than `ENOUGH` take no part.
    """
    numbers = np.array([i for i, sketch in enumerate(sketches) if sketch.size >= ENOUGH], np.int64)
    if not numbers.size:
        return {}
    keys = np.empty((_BANDS, numbers.size), np.uint64)
    for column, number in enumerate(numbers):
        keys[:, column] = _band_keys(minima(sketches[number]))
    found: defaultdict[int, list[int]] = defaultdict(list)
    for band, key in enumerate(keys):
        order = np.argsort(key, kind="stable")
        same = key[order][1:] == key[order][:-1]
        is_shared = np.append(same, False) | np.insert(same, 0, False)
        run = np.insert(np.cumsum(~same), 0, 0)[: numbers.size] * _BANDS + band
        for number, bucket in zip(numbers[order][is_shared].tolist(), run[is_shared].tolist(), strict=True):
            found[number].append(bucket)
    return found


def minima(sketch: np.ndarray) -> np.ndarray:
    """The MinHash of a sketch: uint32 [bands x rows]."""
    multipliers, offsets = _permutations()
    mixed = _mixed(sketch)
    least = np.full(multipliers.size, 2**32 - 1, np.uint32)
    for start in range(0, mixed.size, _PIECE):
        permuted = mixed[start : start + _PIECE, None] * multipliers
        permuted += offsets
        np.minimum(least, permuted.min(axis=0), out=least)
    return least


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """MurmurHash3's 32-bit finalizer, which the scheme applies before it permutes."""
    mixed = hashes ^ (hashes >> np.uint32(16))
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))


def _band_keys(signature: np.ndarray) -> np.ndarray:
    """One number a band, uint64; that two different bands get the same is so rare (2^-64) that a look costs nothing."""
    first, second, third = signature.astype(np.uint64).reshape(_BANDS, _ROWS).T
    return ((first << np.uint64(32) | second) ^ (third * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xBF58476D1CE4E5B9)


@cache
def _permutations() -> np.ndarray:
    from datasketch import MinHash  # here, for it imports much of scipy and many a run has nothing to compare

    return MinHash(num_perm=_BANDS * _ROWS, seed=_SEED, scheme=_SCHEME).permutations
