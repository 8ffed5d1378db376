from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curation.duplicates import containment, find_duplicates
from pipeline.dataset.sketches import minima, shared_buckets, with_bands
from schemas import columns
from stages.fingerprint import FINGERPRINT, SKETCH_SIZE

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("track_id", pa.string()),
        ("audio", columns.AUDIO),
        ("quality", columns.QUALITY),
        ("fingerprint", FINGERPRINT),
        ("verdict", columns.VERDICT),
    ]
)


def sketch(song: int, kept: float = 1.0, size: int = 4000) -> np.ndarray:
    """The sketch of a synthetic song of which this share of landmarks survived; the rest are new ones."""
    hashes = np.random.default_rng(song).integers(0, 2**32, size, dtype=np.uint32)
    changed = round(size * (1 - kept))
    hashes[:changed] = np.random.default_rng((song, changed)).integers(0, 2**32, changed, dtype=np.uint32)
    return np.unique(hashes)[:SKETCH_SIZE]


def row(row_id: str, hashes: Sequence[int] | None = None, *, track: str | None = None, **facts: Any) -> dict[str, Any]:
    return {
        "row_id": row_id,
        "track_id": track or f"track of {row_id}",
        "audio": {"codec": facts.get("codec", "mp3"), "channels": facts.get("channels", 2), "duration_s": 200.0},
        "quality": {"bandwidth_hz": facts.get("bandwidth_hz", 16_000), "clipped_ratio": facts.get("clipped", 0.0)},
        "fingerprint": None if hashes is None else {"hashes": hashes},
        "verdict": {"status": facts.get("status", "kept")},
    }


def duplicates(*rows: dict[str, Any], committed: frozenset[str] = frozenset()) -> dict[str, tuple[str, float]]:
    scan = with_bands(pa.Table.from_pylist(list(rows), SCHEMA))
    is_committed = np.array([r["row_id"] in committed for r in rows], bool)
    found = find_duplicates(scan, is_committed, partial(fingerprints_of, scan))
    return {r["row_id"]: (r["duplicate_of"], r["similarity"]) for r in found.to_pylist()}


def fingerprints_of(scan: pa.Table, rows: pa.Table) -> pa.StructArray:
    """Column fingerprint of rows, which their table lacks."""
    return scan["fingerprint"].combine_chunks().take(pc.index_in(rows["row_id"].combine_chunks(), scan["row_id"]))


def names(found: dict[str, tuple[str, float]]) -> dict[str, str]:
    return {row_id: original for row_id, (original, _) in found.items()}


def test_the_same_bytes_are_a_duplicate_without_any_fingerprint():
    assert duplicates(row("b", track="x"), row("a", track="x"), row("c")) == {"b": ("a", 1.0)}


def test_a_near_copy_is_found_and_never_called_identical():
    found = duplicates(row("a", sketch(1)), row("b", sketch(1)), row("c", sketch(1, kept=0.7)), row("d", sketch(2)))
    assert names(found) == {"b": "a", "c": "a"}
    assert found["b"][1] < 1
    assert found["c"][1] == pytest.approx(0.7, abs=0.08)


def test_silent_songs_are_no_copies_of_each_other():
    assert duplicates(row("a", []), row("b", []), row("c"), row("d")) == {}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"channels": 2}, {"channels": 1, "codec": "flac", "bandwidth_hz": 22_000}),
        ({"bandwidth_hz": 20_000}, {"bandwidth_hz": 16_000, "codec": "flac"}),
        ({"codec": "flac"}, {"codec": "opus"}),
        ({"codec": "pcm_s24le", "bandwidth_hz": 20_000}, {"codec": "mp3", "bandwidth_hz": 20_300}),
        ({"clipped": 0.0}, {"clipped": 0.02}),
        ({}, {}),  # then the smaller row_id
    ],
)
def test_the_better_copy_stays(better, worse):
    better_id, worse_id = ("b", "a") if better else ("a", "b")
    found = duplicates(row(worse_id, sketch(1), **worse), row(better_id, sketch(1), **better))
    assert names(found) == {worse_id: better_id}


def test_a_committed_row_wins_over_a_better_one():
    rows = row("a", sketch(1), codec="flac"), row("b", sketch(1), codec="mp3")
    assert names(duplicates(*rows)) == {"b": "a"}
    assert names(duplicates(*rows, committed=frozenset("b"))) == {"a": "b"}
    assert names(duplicates(*rows, committed=frozenset("ab"))) == {"b": "a"}


def test_a_rejected_row_takes_no_part():
    assert duplicates(row("a", sketch(1), codec="flac", status="filtered"), row("b", sketch(1))) == {}


def test_songs_that_only_resemble_a_third_are_not_lost_with_it():
    a, c = sketch(1, size=1000)[:250], sketch(2, size=1000)[:250]
    medley = np.union1d(a, c)
    assert containment(a, medley) == containment(c, medley) == 1
    worst_in_the_middle = duplicates(row("a", a, codec="flac"), row("m", medley), row("c", c, codec="flac"))
    assert names(worst_in_the_middle) == {"m": "a"}


def test_half_a_song_is_wholly_contained_in_it():
    whole = np.unique(np.random.default_rng(3).integers(0, 2**32, 8000, dtype=np.uint32))
    half = np.sort(np.random.default_rng(4).choice(whole, 4000, replace=False))
    assert containment(whole[:SKETCH_SIZE], half[:SKETCH_SIZE]) == 1


def test_copies_among_more_lyrics_than_fit_into_one_array_are_found():
    text = pa.array(["la" * 50_000_000])
    scan = with_bands(pa.Table.from_pylist([row(f"{i:02d}", track=f"{i % 22}") for i in range(23)], SCHEMA))
    scan = scan.append_column("given_lyrics", pa.chunked_array([text] * 23))  # 2.3 GB, of which one chunk is real
    found = find_duplicates(scan, np.zeros(23, bool), partial(fingerprints_of, scan))
    assert found.to_pylist() == [{"row_id": "22", "duplicate_of": "00", "similarity": 1.0}]


def test_minima_are_those_of_datasketch():
    expected = MinHash(num_perm=192, seed=1, scheme="affine32", hashfunc=int)
    expected.update_batch(sketch(5))
    assert (minima(sketch(5)) == expected.hashvalues).all()


def test_sketches_share_a_bucket_where_the_minima_of_a_band_agree():
    sketches = [sketch(1), sketch(2), sketch(1, kept=0.7), sketch(3)[:31], sketch(1, kept=0.5)]
    scan = with_bands(pa.Table.from_pylist([row(str(i), s) for i, s in enumerate(sketches)], SCHEMA))
    buckets = shared_buckets(scan["bands"])
    bands = [{(b, *row) for b, row in enumerate(minima(s).reshape(64, 3).tolist())} for s in sketches]
    assert set(buckets) == {0, 2, 4}
    for a, b in ((0, 2), (0, 4), (2, 4)):
        assert len(set(buckets[a]) & set(buckets[b])) == len(bands[a] & bands[b])


ROWS = st.builds(
    lambda song, kept, track, codec, status: (sketch(song, kept), track, codec, status),
    st.integers(0, 3),
    st.sampled_from([1.0, 0.8, 0.6]),
    st.sampled_from(["x", "y", None]),
    st.sampled_from(["flac", "mp3"]),
    st.sampled_from(["kept", "kept", "kept", "failed"]),
)


@settings(max_examples=60, deadline=None)
@given(songs=st.lists(ROWS, max_size=12), data=st.data())
def test_invariants(songs, data):
    rows = [row(f"{i:02d}", h, track=t, codec=c, status=s) for i, (h, t, c, s) in enumerate(songs)]
    committed = frozenset(data.draw(st.sets(st.sampled_from([r["row_id"] for r in rows])))) if rows else frozenset()
    found = duplicates(*rows, committed=committed)

    status = {r["row_id"]: r["verdict"]["status"] for r in rows}
    for row_id, (original, similarity) in found.items():
        assert row_id not in committed or original in committed
        assert original not in found
        assert status[row_id] == status[original] == "kept"
        assert 0.4 <= similarity <= 1

    assert duplicates(*data.draw(st.permutations(rows)), committed=committed) == found
    left = [r for r in rows if r["row_id"] not in found]
    assert duplicates(*left, committed=committed) == {}
