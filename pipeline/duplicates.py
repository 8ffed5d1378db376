"""Which songs are copies of which: exact by content, near by fingerprint, decided over the whole scan at once.

Copies gather around the best one ("star"): rows are taken best first, and a row is a duplicate if it is similar enough
to a row already kept. So a duplicate always names a kept row it resembles itself, two songs that merely resemble a
third are not lost with it, and the order in which files arrived does not matter.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.fingerprint import SKETCH_SIZE

if TYPE_CHECKING:
    from datasketch import MinHash

DUPLICATES = pa.schema([("row_id", pa.string()), ("duplicate_of", pa.string()), ("similarity", pa.float64())])

# Candidates come from 64 bands of 3 minima: a pair of Jaccard similarity 0.4 is found with probability 0.986, one of
# 0.3 with 0.83, and one of 0.01 (two songs of a style) with 0.00006. The scheme is pinned; scans outlive releases.
_BANDS, _ROWS = 64, 3
_SCHEME, _SEED = "affine32", 1
_ENOUGH = 32  # hashes that must be comparable before a resemblance counts
_ALMOST = 0.999  # the most an estimate can say; 1 is for the same bytes

_LOSSLESS = frozenset({"flac", "alac", "wavpack", "ape", "tta", "mlp", "truehd", "wmalossless", "tak", "shorten"})


@dataclass(frozen=True)
class _Song:
    """A row that takes part."""

    row_id: str
    track_id: str | None
    committed: bool
    merit: tuple[float, ...]
    sketch: np.ndarray

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sorts the song to keep first."""
        return not self.committed, tuple(-value for value in self.merit), self.row_id


def find_duplicates(scan: pa.Table, committed: Set[str], threshold: float = 0.4) -> pa.Table:
    """Name every copy among the scan's kept rows, with the row it is a copy of.

    Of several copies the one stays that is committed already, else the best (see `_merit`), else the smaller row_id.
    A committed row is a duplicate of a committed one only. The result does not depend on the order of the rows.

    Args:
        scan: columns row_id, track_id, verdict and, null or absent where unknown, audio, quality, fingerprint. Rows
            whose verdict is not "kept" take no part.
        committed: row_ids that an earlier run has committed as kept.
        threshold: similarity (see `containment`) from which a song is a copy. Measured on AI songs of one generator:
            copies (MP3 and Opus at 64 kbit/s, +6 dB clipped, cut by 4 s of 30 s, also all of it together) lie above
            0.5, different songs below 0.25.

    Returns:
        `DUPLICATES`, by row_id; similarity is 1 where the files are the same bytes.
    """
    index = _Index(threshold)
    found: list[tuple[str, str, float]] = []
    for song in sorted(_songs(scan, committed), key=lambda song: song.rank):
        signature = _signature(song.sketch)
        original = index.original_of(song, signature)
        if original is None:
            index.keep(song, signature)
        else:
            found.append((song.row_id, *original))
    rows = [dict(zip(DUPLICATES.names, row, strict=True)) for row in sorted(found)]
    return pa.Table.from_pylist(rows, DUPLICATES)


class _Index:
    """The songs kept so far."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH  # here, for it imports much of scipy and many a run has nothing to compare

        self._threshold = threshold
        self._by_track: dict[str, str] = {}
        self._sketches: dict[str, np.ndarray] = {}
        self._bands = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))

    def keep(self, song: _Song, signature: "MinHash | None") -> None:
        if song.track_id is not None:
            self._by_track.setdefault(song.track_id, song.row_id)
        if signature is not None:
            self._sketches[song.row_id] = song.sketch
            self._bands.insert(song.row_id, signature)

    def original_of(self, song: _Song, signature: "MinHash | None") -> tuple[str, float] | None:
        """The kept song it copies, and how similar they are: the same bytes, else the most similar one."""
        if song.track_id in self._by_track:
            return self._by_track[song.track_id], 1.0
        if signature is None:
            return None
        near = ((row_id, containment(song.sketch, self._sketches[row_id])) for row_id in self._bands.query(signature))
        alike = [(row_id, min(share, _ALMOST)) for row_id, share in near if share >= self._threshold]
        return min(alike, key=lambda pair: (-pair[1], pair[0]), default=None)


def _signature(sketch: np.ndarray) -> "MinHash | None":
    """MinHash of a sketch; None if it is too small to resemble anything."""
    if sketch.size < _ENOUGH:
        return None
    from datasketch import MinHash

    signature = MinHash(num_perm=_BANDS * _ROWS, seed=_SEED, scheme=_SCHEME, hashfunc=int, permutations=_permutations())
    signature.update_batch(sketch)
    return signature


@cache
def _permutations() -> np.ndarray:
    from datasketch import MinHash

    return MinHash(num_perm=_BANDS * _ROWS, seed=_SEED, scheme=_SCHEME).permutations


def containment(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the shorter song's landmarks that the longer one has, estimated from two sketches.

    A full sketch says nothing about hashes above its greatest, so only what both cover is compared. Unlike the Jaccard
    similarity this does not fall when one of the songs is trimmed. 0 when there is too little to compare.
    """
    limit = min(_covered(a), _covered(b))
    a, b = (sketch[: np.searchsorted(sketch, limit, side="right")] for sketch in (a, b))
    fewer = min(a.size, b.size)
    return np.intersect1d(a, b, assume_unique=True).size / fewer if fewer >= _ENOUGH else 0.0


def _covered(sketch: np.ndarray) -> int:
    return int(sketch[-1]) if sketch.size >= SKETCH_SIZE else 2**32 - 1


def _songs(scan: pa.Table, committed: Set[str]) -> Iterator[_Song]:
    kept = scan.filter(pc.equal(pc.struct_field(scan["verdict"], "status"), "kept"))
    fingerprints = pc.struct_field(kept["fingerprint"], "hashes") if "fingerprint" in kept.column_names else None
    columns = (
        kept[name].to_pylist() if name in kept.column_names else [None] * kept.num_rows
        for name in ("row_id", "track_id", "audio", "quality")
    )
    for i, (row_id, track_id, audio, quality) in enumerate(zip(*columns, strict=True)):
        hashes = fingerprints[i].values if fingerprints else None
        yield _Song(
            row_id=row_id,
            track_id=track_id,
            committed=row_id in committed,
            merit=_merit(audio or {}, quality or {}),
            sketch=np.empty(0, np.uint32) if hashes is None else hashes.to_numpy(),
        )


def _merit(audio: Mapping[str, Any], quality: Mapping[str, Any]) -> tuple[float, ...]:
    """What makes the better copy, most important first. Coarse steps keep jitter of the measurements from deciding.

    Stereo over mono; the wider band (steps of 2 kHz), which comes before lossless since an MP3 saved as FLAC is still
    an MP3; lossless over lossy; less clipping (steps of 0.1 %); longer (whole seconds); the higher sampling rate.
    """
    codec = audio.get("codec") or ""
    return (
        min(audio.get("channels") or 0, 2),
        (quality.get("bandwidth_hz") or 0) // 2000,
        codec.startswith("pcm_") or codec in _LOSSLESS,
        -((quality.get("clipped_ratio") or 0) // 0.001),
        (audio.get("duration_s") or 0) // 1,
        audio.get("sample_rate_hz") or 0,
    )
