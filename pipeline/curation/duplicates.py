"""Which songs are copies of which: exact by content, near by fingerprint, decided over the whole scan at once.

Copies gather around the best one ("star"): rows are taken best first, and a row is a duplicate if it is similar enough
to a row already kept. So a duplicate always names a kept row it resembles itself, two songs that merely resemble a
third are not lost with it, and the order in which files arrived does not matter.
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

_ALMOST = 0.999  # the most an estimate can say; 1 is for the same bytes

_LOSSLESS = frozenset({"flac", "alac", "wavpack", "ape", "tta", "mlp", "truehd", "wmalossless", "tak", "shorten"})


def find_duplicates(
    scan: pa.Table,
    committed: np.ndarray,
    fingerprints: Callable[[pa.Table], pa.StructArray],
    threshold: float = 0.4,
    missing: np.ndarray | None = None,
) -> pa.Table:
    """Name every copy among the scan's kept rows, with the row it is a copy of.

    Of several copies the one stays that is committed already, else one whose file is there, else the best (see
    `_merit`), else the smaller row_id.
    A committed row is a duplicate of a committed one only. The result does not depend on the order of the rows.

    Args:
        scan: columns row_id, track_id, verdict, `BANDS`, `PART` and, null or absent where unknown, audio, quality.
            Rows whose verdict is not "kept" take no part.
        committed: bool [rows]: whether an earlier run has committed the row as kept.
        fingerprints: column fingerprint of rows of the scan; asked for those few that may resemble others.
        threshold: similarity (see `containment`) from which a song is a copy. Measured on AI songs of one generator:
            copies (MP3 and Opus at 64 kbit/s, +6 dB clipped, cut by 4 s of 30 s, also all of it together) lie above
            0.5, different songs below 0.25.
        missing: bool [rows]: whether the row's file is away; default none is.

    Returns:
        `DUPLICATES`, by row_id; similarity is 1 where the files are the same bytes.
    """
    takes_part = pc.fill_null(pc.equal(pc.struct_field(scan["verdict"], "status"), "kept"), False)
    numbers = np.nonzero(takes_part.to_numpy())[0]
    buckets = shared_buckets(scan[BANDS.name].filter(takes_part))
    entangled = np.union1d(_same_bytes(scan["track_id"].filter(takes_part)), np.array([*buckets], np.int64))
    # Not whole rows: their lyrics, of a million songs, overflow the one array that `take` makes of each column.
    needed = scan.select([name for name in scan.column_names if name in _NEEDED])
    songs = needed.take(numbers[entangled])
    known = [*sketches(fingerprints(songs))] if buckets else []  # then nobody asks for them
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
    """Places of the songs whose track id another one has too."""
    counts = pc.value_counts(track_ids.drop_null())
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    return np.nonzero(pc.is_in(track_ids, several).to_numpy())[0]


class _Index:
    """The songs kept so far, by their number among those that have something in common with others."""

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
        """The kept song it copies, and how similar they are: the same bytes, else the most similar one."""
        track_id = self._track_ids[song]
        if track_id is not None and track_id in self._by_track:
            return self._row_ids[self._by_track[track_id]], 1.0
        near = {other for bucket in self._buckets[song] for other in self._in_bucket[bucket]}
        shares = ((other, containment(self._sketches[song], self._sketches[other])) for other in near)
        alike = [(self._row_ids[other], min(share, _ALMOST)) for other, share in shares if share >= self._threshold]
        return min(alike, key=lambda pair: (-pair[1], pair[0]), default=None)


def containment(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the shorter song's landmarks that the longer one has, estimated from two sketches.

    A full sketch says nothing about hashes above its greatest, so only what both cover is compared. Unlike the Jaccard
    similarity this does not fall when one of the songs is trimmed. 0 when there is too little to compare.
    """
    limit = min(_covered(a), _covered(b))
    a, b = (sketch[: np.searchsorted(sketch, limit, side="right")] for sketch in (a, b))
    fewer = min(a.size, b.size)
    return np.intersect1d(a, b, assume_unique=True).size / fewer if fewer >= ENOUGH else 0.0


def _covered(sketch: np.ndarray) -> int:
    return int(sketch[-1]) if sketch.size >= SKETCH_SIZE else 2**32 - 1


def _best_first(songs: pa.Table, committed: np.ndarray, missing: np.ndarray) -> list[int]:
    """The songs in the order in which they are kept: committed ones, those that are there, by merit, by row_id."""
    by_id = pc.sort_indices(songs["row_id"]).to_numpy()
    worst_last = [~committed, missing, *(-figure for figure in _merit(songs))]
    return by_id[np.lexsort([figure[by_id] for figure in reversed(worst_last)])].tolist()


def _merit(facts: pa.Table) -> tuple[np.ndarray, ...]:
    """What makes the better copy, most important first. Coarse steps keep jitter of the measurements from deciding.

    Stereo over mono; the wider band (steps of 2 kHz), which comes before lossless since an MP3 saved as FLAC is still
    an MP3; lossless over lossy; less clipping (steps of 0.1 %); longer (whole seconds); the higher sampling rate.
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
    """A figure of every song; 0 where it was not measured."""
    if column not in facts.column_names:
        return np.zeros(facts.num_rows)
    return pc.fill_null(pc.struct_field(facts[column], field).cast(pa.float64()), 0.0).to_numpy()


def _is_lossless(facts: pa.Table) -> np.ndarray:
    if "audio" not in facts.column_names:
        return np.zeros(facts.num_rows)
    codecs = pc.struct_field(facts["audio"], "codec").to_pylist()
    return np.array([float((codec or "").startswith("pcm_") or codec in _LOSSLESS) for codec in codecs])
