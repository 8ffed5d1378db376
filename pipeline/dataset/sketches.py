"""Which of a million sketches may resemble each other: MinHash in bands, over all of them at once.

A pair whose minima agree in a whole band shares a bucket and is worth a look; most songs share none with anybody. The
minima are datasketch's, whose scheme is pinned: scans outlive releases. Its index would hold every band of every song
in dictionaries, 20 KB a song. Here a song's bands are 256 bytes of the scan table, made once, and sorted one by one.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ENOUGH = 32  # hashes that a sketch needs before it can resemble anything

# 64 bands of 3 minima: a pair of Jaccard similarity 0.4 is found with probability 0.986, one of 0.3 with 0.83, and one
# of 0.01 (two songs of a style) with 0.00006.
_BANDS, _ROWS = 64, 3
_PIECE = 64  # hashes that are permuted at a time, so that it stays in the cache
_SCHEME, _SEED = "affine32", 1
_KEY = np.dtype("<u4")

BANDS = pa.field("bands", pa.binary(_BANDS * _KEY.itemsize))  # null where the sketch says too little


def with_bands(rows: pa.Table) -> pa.Table:
    """The rows with column `BANDS`, made from their fingerprints where there are any."""
    if "fingerprint" not in rows.column_names:
        return rows.append_column(BANDS, pa.nulls(rows.num_rows, BANDS.type))
    made = [
        bands(sketch).tobytes() if sketch.size >= ENOUGH else None
        for sketch in sketches(rows["fingerprint"].combine_chunks())
    ]
    return rows.append_column(BANDS, pa.array(made, BANDS.type))


def sketches(fingerprints: pa.StructArray) -> Iterator[np.ndarray]:
    """The sketch of every song, a view of the column's memory; empty where there is none."""
    nothing = np.empty(0, np.uint32)
    hashes = pc.struct_field(fingerprints, "hashes")
    offsets, values = hashes.offsets.to_numpy(), hashes.values.to_numpy()
    for valid, start, end in zip(hashes.is_valid().to_pylist(), offsets[:-1], offsets[1:], strict=True):
        yield values[start:end] if valid else nothing


def shared_buckets(songs: pa.ChunkedArray) -> Mapping[int, list[int]]:
    """Song, by its place -> the buckets it shares with at least one other; songs that share none are left out.

    Args:
        songs: column `BANDS`.
    """
    numbers = np.nonzero(songs.is_valid().to_numpy())[0]
    found: defaultdict[int, list[int]] = defaultdict(list)
    if not numbers.size:
        return found
    known = songs.drop_null().combine_chunks()
    keys = np.frombuffer(known.buffers()[1], _KEY).reshape(-1, _BANDS)[known.offset :][: len(known)]
    for band in range(_BANDS):
        members, groups = _repeated(np.ascontiguousarray(keys[:, band]))
        for number, group in zip(numbers[members].tolist(), groups.tolist(), strict=True):
            found[number].append(group * _BANDS + band)
    return found


def _repeated(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the values that occur more than once, and for each a number that equal values share."""
    ordered = np.sort(values)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    places = np.nonzero(np.isin(values, several))[0]
    return places, np.searchsorted(several, values[places])


def bands(sketch: np.ndarray) -> np.ndarray:
    """One number a band, uint32. Two different bands get the same once in 2^32, which costs a look."""
    first, second, third = minima(sketch).astype(np.uint64).reshape(_BANDS, _ROWS).T
    mixed = (first << np.uint64(32) | second) ^ (third * np.uint64(0x9E3779B97F4A7C15))
    return ((mixed * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32)).astype(_KEY)


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


@cache
def _permutations() -> np.ndarray:
    from datasketch import MinHash  # here, for it imports much of scipy and many a run has nothing to compare

    return MinHash(num_perm=_BANDS * _ROWS, seed=_SEED, scheme=_SCHEME).permutations
