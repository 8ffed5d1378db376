"""Candidate pairs of similar songs: MinHash with LSH banding over up to millions of sketches at once.

Two songs whose minima agree in a whole band share a bucket and are compared; most songs share no bucket. The MinHash
permutations are datasketch's with a pinned scheme, since stored scans outlive releases. datasketch's own LSH index
keeps every band of every song in dictionaries, 20 KB per song; here a song's bands take 256 bytes in the scan table,
computed once, and are matched by sorting one band at a time.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ENOUGH = 32  # minimum number of hashes for a comparison

# 64 bands of 3 minima: a pair with Jaccard similarity 0.4 is found with probability 0.986, one with 0.3 with 0.83, and
# one with 0.01 (two songs of the same style) with 0.00006.
_BANDS, _ROWS = 64, 3
_PIECE = 64  # hashes that are permuted at a time, so that the intermediate array fits the CPU cache
_SCHEME, _SEED = "affine32", 1
_KEY = np.dtype("<u4")

BANDS = pa.field("bands", pa.binary(_BANDS * _KEY.itemsize))  # null if the sketch has too few hashes


def with_bands(rows: pa.Table) -> pa.Table:
    """The rows with column `BANDS`, computed from column fingerprint; all null without that column."""
    if "fingerprint" not in rows.column_names:
        return rows.append_column(BANDS, pa.nulls(rows.num_rows, BANDS.type))
    made = [
        bands(sketch).tobytes() if sketch.size >= ENOUGH else None
        for sketch in sketches(rows["fingerprint"].combine_chunks())
    ]
    return rows.append_column(BANDS, pa.array(made, BANDS.type))


def sketches(fingerprints: pa.StructArray) -> Iterator[np.ndarray]:
    """Yield the sketch of every song, uint32 [hashes], as a view into the column; empty for null."""
    nothing = np.empty(0, np.uint32)
    hashes = pc.struct_field(fingerprints, "hashes")
    offsets, values = hashes.offsets.to_numpy(), hashes.values.to_numpy()
    for valid, start, end in zip(hashes.is_valid().to_pylist(), offsets[:-1], offsets[1:], strict=True):
        yield values[start:end] if valid else nothing


def shared_buckets(songs: pa.ChunkedArray) -> Mapping[int, list[int]]:
    """Index of a song -> buckets that it shares with at least one other song; songs without such buckets are left out.

    Args:
        songs: column `BANDS`, [songs].
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
    """Indices of the values that occur more than once, and for each a group number shared by equal values."""
    ordered = np.sort(values)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    places = np.nonzero(np.isin(values, several))[0]
    return places, np.searchsorted(several, values[places])


def bands(sketch: np.ndarray) -> np.ndarray:
    """One hash per band, uint32 [bands]. Collisions (1 in 2^32) only cause an unnecessary comparison."""
    first, second, third = minima(sketch).astype(np.uint64).reshape(_BANDS, _ROWS).T
    mixed = (first << np.uint64(32) | second) ^ (third * np.uint64(0x9E3779B97F4A7C15))
    return ((mixed * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32)).astype(_KEY)


def minima(sketch: np.ndarray) -> np.ndarray:
    """The MinHash signature of a sketch: uint32 [bands x minima per band]."""
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
    from datasketch import MinHash  # here: it imports much of scipy, and many runs compare nothing

    return MinHash(num_perm=_BANDS * _ROWS, seed=_SEED, scheme=_SCHEME).permutations
