"""Find duplicate songs over the whole scan at once: exact by content hash, near by audio fingerprint.

This is star clustering around the best copy: rows are visited best first, and a row is a duplicate if it is similar
enough to a row already kept. So a duplicate always refers to a kept row that it resembles directly, two songs that each
resemble a third are not merged transitively, and the result does not depend on the order of the input.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.sketch_reader import PART
from pipeline.dataset.sketches import BANDS, ENOUGH, shared_buckets, sketches
from stages.fingerprint import SKETCH_SIZE

DUPLICATES = pa.schema([("row_id", pa.string()), ("duplicate_of", pa.string()), ("similarity", pa.float64())])

_NEEDED = ("row_id", "track_id", "audio", "quality", PART.name)

_CAP = 0.999  # upper bound of an estimated similarity; 1 means identical bytes

_LOSSLESS = frozenset({"flac", "alac", "wavpack", "ape", "tta", "mlp", "truehd", "wmalossless", "tak", "shorten"})


def find_duplicates(
    scan: pa.Table,
    committed: np.ndarray,
    fingerprints: Callable[[pa.Table], pa.StructArray],
    threshold: float = 0.4,
    missing: np.ndarray | None = None,
) -> pa.Table:
    """Find every duplicate among the scan's kept rows, with the row it is a copy of.

    Among copies, a committed row is preferred, then a row whose file exists, then the better one (see `_merit`), then
    the smaller row_id. A committed row can only be a duplicate of a committed one. The result does not depend on the
    order of the rows.

    Args:
        scan: columns row_id, track_id, verdict, `BANDS`, `PART` and optionally audio and quality, which may be null.
            Rows whose verdict is not "kept" are ignored.
        committed: bool [rows]: whether an earlier run has committed the row as kept.
        fingerprints: returns column fingerprint for rows of the scan; called only with rows that may have duplicates.
        threshold: minimum similarity (see `containment`), 0 to 1, of a duplicate. Measured on AI songs of one
            generator: copies (MP3 and Opus at 64 kbit/s, +6 dB clipped, cut by 4 s of 30 s, and all of these combined)
            score above 0.5, different songs below 0.25.
        missing: bool [rows]: whether the row's file is missing; by default none is.

    Returns:
        Table of schema `DUPLICATES`, sorted by row_id; similarity is 1 for files with identical bytes.
    """
    takes_part = pc.fill_null(pc.equal(pc.struct_field(scan["verdict"], "status"), "kept"), False)
    numbers = np.nonzero(takes_part.to_numpy())[0]
    buckets = shared_buckets(scan[BANDS.name].filter(takes_part))
    entangled = np.union1d(_same_bytes(scan["track_id"].filter(takes_part)), np.array([*buckets], np.int64))
    # Only the needed columns: `take` puts a column into one array, which the lyrics of a million songs overflow.
    needed = scan.select([name for name in scan.column_names if name in _NEEDED])
    songs = needed.take(numbers[entangled])
    known = [*sketches(fingerprints(songs))] if buckets else []  # without buckets they are not needed
    index = _Index(threshold, songs, known, [buckets.get(i, []) for i in entangled.tolist()])
    found = []
    away = np.zeros(scan.num_rows, bool) if missing is None else missing
    for song in _best_first(songs, committed[numbers[entangled]], away[numbers[entangled]]):
        original = index.original_of(song)
        if original is None:
            index.keep(song)
        else:
            found.append((songs["row_id"][song].as_py(), *original))
    rows = [dict(zip(DUPLICATES.names, row, strict=True)) for row in sorted(found)]
    return pa.Table.from_pylist(rows, DUPLICATES)


def _same_bytes(track_ids: pa.ChunkedArray) -> np.ndarray:
    """Indices of the songs that share their track id with another song."""
    counts = pc.value_counts(track_ids.drop_null())
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return np.nonzero(pc.is_in(track_ids, several).to_numpy())[0]


class _Index:
    """The songs kept so far, by track id and by bucket; a song is an index into the candidate table."""

    def __init__(self, threshold: float, songs: pa.Table, known: list[np.ndarray], buckets: list[list[int]]) -> None:
        self._threshold = threshold
        self._row_ids, self._track_ids = songs["row_id"].to_pylist(), songs["track_id"].to_pylist()
        self._sketches, self._buckets = known, buckets
        self._by_track: dict[str, int] = {}
        self._in_bucket: defaultdict[int, list[int]] = defaultdict(list)

    def keep(self, song: int) -> None:
        track_id = self._track_ids[song]
        if track_id is not None:
            self._by_track.setdefault(track_id, song)
        for bucket in self._buckets[song]:
            self._in_bucket[bucket].append(song)

    def original_of(self, song: int) -> tuple[str, float] | None:
        """Row id of the kept song that this one duplicates, and their similarity; None if it duplicates none.

        A song with identical bytes comes first, else the most similar one.
        """
        track_id = self._track_ids[song]
        if track_id is not None and track_id in self._by_track:
            return self._row_ids[self._by_track[track_id]], 1.0
        near = {other for bucket in self._buckets[song] for other in self._in_bucket[bucket]}
        shares = ((other, containment(self._sketches[song], self._sketches[other])) for other in near)
        similar = [(self._row_ids[other], min(share, _CAP)) for other, share in shares if share >= self._threshold]
        return min(similar, key=lambda pair: (-pair[1], pair[0]), default=None)


def containment(a: np.ndarray, b: np.ndarray) -> float:
    """Containment, 0 to 1: the share of the shorter song's landmarks that the longer one also has, from two sketches.

    A full sketch has no information on hashes above its maximum, so only the range that both cover is compared. Unlike
    Jaccard similarity, containment does not decrease when one of the songs is trimmed. 0 if too few hashes remain.

    Args:
        a: sorted uint32 hashes, at most `SKETCH_SIZE`.
        b: as `a`.
    """
    limit = min(_covered(a), _covered(b))
    a, b = (sketch[: np.searchsorted(sketch, limit, side="right")] for sketch in (a, b))
    fewer = min(a.size, b.size)
    return np.intersect1d(a, b, assume_unique=True).size / fewer if fewer >= ENOUGH else 0.0


def _covered(sketch: np.ndarray) -> int:
    return int(sketch[-1]) if sketch.size >= SKETCH_SIZE else 2**32 - 1


def _best_first(songs: pa.Table, committed: np.ndarray, missing: np.ndarray) -> list[int]:
    """Indices of the songs, best first: committed, then with an existing file, then by `_merit`, then by row_id."""
    by_id = pc.sort_indices(songs["row_id"]).to_numpy()
    worst_last = [~committed, missing, *(-figure for figure in _merit(songs))]
    return by_id[np.lexsort([figure[by_id] for figure in reversed(worst_last)])].tolist()


def _merit(facts: pa.Table) -> tuple[np.ndarray, ...]:
    """Quality criteria of a copy, most important first. Coarse steps keep measurement noise from deciding.

    Stereo over mono; wider bandwidth (steps of 2 kHz), before lossless since an MP3 saved as FLAC is still an MP3;
    lossless over lossy; less clipping (steps of 0.1 %); longer (whole seconds); higher sampling rate.
    """
    return (
        np.minimum(_figure(facts, "audio", "channels"), 2),
        _figure(facts, "quality", "bandwidth_hz") // 2000,
        _is_lossless(facts),
        -(_figure(facts, "quality", "clipped_ratio") // 0.001),
        _figure(facts, "audio", "duration_s") // 1,
        _figure(facts, "audio", "sample_rate_hz"),
    )


def _figure(facts: pa.Table, column: str, field: str) -> np.ndarray:
    """One field of every song as float64 [rows]; 0 where it was not measured."""
    if column not in facts.column_names:
        return np.zeros(facts.num_rows)
    return pc.fill_null(pc.struct_field(facts[column], field).cast(pa.float64()), 0.0).to_numpy()


def _is_lossless(facts: pa.Table) -> np.ndarray:
    if "audio" not in facts.column_names:
        return np.zeros(facts.num_rows)
    codecs = pc.struct_field(facts["audio"], "codec").to_pylist()
    return np.array([float((codec or "").startswith("pcm_") or codec in _LOSSLESS) for codec in codecs])
