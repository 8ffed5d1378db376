"""The lyric index: what it counts, and what the commands make of libraries, sound and unsound."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lyric_tokens import encode, load_vocabulary
from stages.matching.index import ContainmentSketch, LshSketch, Postings, lsh_rows
from stages.matching.library import LibraryError, LyricLibrary
from stages.text.bpe import LINE_END_ID
from tests.stages.test_lyrics import public_domain
from tests.support.command import asked, songmill

MANY = 250  # songs, more than are read without a cluster
phones = st.text("abdeiklmnoprstuvwɔəɪʊʃ", max_size=80)


def rows(**changes: dict) -> list[dict]:
    """A library of verses, a song a language."""
    return [
        {"id": language, "title": f"Verses {language}", "artist": "trad.", "language": language, "text": text,
         "license": "CC0-1.0", **changes.get(language, {})}
        for language, text in public_domain().items()
    ]  # fmt: skip


def written(path: Path, songs: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(songs), path)
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory, shared_cluster) -> tuple[Path, str]:
    """An index that was built on a cluster from a library with faults, one song added later, and what was said."""
    folder = tmp_path_factory.mktemp("lyrics")
    faulty = rows(cs={"text": ""}, hi={"text": "la " * 40_000}, tr={"language": "xx"})
    faulty += [{**faulty[0], "title": "again"}, {**faulty[0], "id": None}]
    nonsense = [f"la {'di da ' * (number % 7)}number {number}" for number in range(MANY)]
    faulty += [{**faulty[0], "id": f"nonsense-{number}", "text": text} for number, text in enumerate(nonsense)]
    library = written(folder / "lyrics.parquet", faulty)
    said, _ = songmill("lyrics", "index", library, "--out", folder / "index", **shared_cluster)
    later = [row for row in rows() if row["id"] == "cs"]
    asked("lyrics", "index", written(folder / "later.parquet", later), "--out", folder / "index", "--add")
    return folder / "index", said


@given(phones, phones, phones)
def test_keys_of_a_part_are_keys_of_the_whole(before, part, after):
    sketch = ContainmentSketch(keep_one_in=2)
    assert set(sketch.keys(part)) <= set(sketch.keys(before + part + after))


def test_one_shingle_in_four_is_kept():
    text = "".join(random.Random(0).choices("abdeiklmnoprstuvwɔəɪʊʃ", k=40_000))
    shingles = {text[i : i + 5] for i in range(len(text) - 4)}
    keys = ContainmentSketch().keys(text)
    assert len(keys) == len(set(keys)) == pytest.approx(len(shingles) / 4, rel=0.05)
    assert not np.array_equal(keys, ContainmentSketch(seed=2).keys(text))
    assert len(ContainmentSketch(keep_one_in=1).keys(text)) == len(shingles)


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=12), st.lists(st.integers(0, 35), max_size=10))
def test_shares_are_those_of_counting_by_hand(songs, query):
    keys = [np.unique(np.array(song, np.uint64)) for song in songs]
    asked_for = np.unique(np.array(query, np.uint64))
    having = Counter(key for song in keys for key in song.tolist())
    weight = {key: np.log1p(len(songs) / having[key]) if key in having else np.log1p(len(songs)) for key in query}
    found = dict(Postings.build(keys).best(asked_for, most=100))
    assert set(found) == {n for n, song in enumerate(keys) if set(song.tolist()) & set(query)}
    for number, share in found.items():
        both = set(keys[number].tolist()) & set(query)
        assert share == pytest.approx(sum(weight[key] for key in both) / sum(weight[key] for key in set(query)))


def test_what_most_songs_have_is_not_counted():
    everywhere, rare = np.array([7], np.uint64), np.array([7, 9], np.uint64)
    postings = Postings.build([everywhere] * 500 + [rare])
    assert postings.best(everywhere, most=3) == []
    assert [song for song, _ in postings.best(rare, most=3)] == [500]


def test_bands_are_as_long_as_the_wanted_recall_allows():
    rows_of_half = lsh_rows(jaccard=0.5, recall=0.99)
    assert 1 - (1 - 0.5**rows_of_half) ** (128 // rows_of_half) >= 0.99
    assert 1 - (1 - 0.5 ** (rows_of_half + 1)) ** (128 // (rows_of_half + 1)) < 0.99
    assert lsh_rows(jaccard=0.9, recall=0.99) > rows_of_half


def test_faults_of_a_library_are_counted_and_listed(index):
    folder, said = index
    assert f"{14 + MANY} songs indexed, 5 skipped" in said
    listed = {(skip["id"], skip["reason"]) for skip in pq.read_table(folder / "skipped.parquet").to_pylist()}
    first = next(iter(public_domain()))
    assert listed == {
        ("cs", "no lines"),
        ("hi", "text of more than 100000 characters"),
        ("tr", "unknown language xx"),
        (first, "duplicate id"),
        ("", "no id"),
    }


def test_songs_are_found_from_the_shell_and_later_ones_too(index):
    folder, _ = index
    for language in ("en", "ja", "cs", "ko"):
        line = next(line for line in public_domain()[language].splitlines() if len(line) > 12)
        found = json.loads(asked("lyrics", "search", folder, line, "--language", language, "--json"))
        assert (found[0]["id"], found[0]["artist"]) == (language, "trad.")
        assert found[0]["share"] > 0.5
    line = next(line for line in public_domain()["en"].splitlines() if len(line) > 12)
    assert "Verses en" in asked("lyrics", "search", folder, line)
    assert "no song shares" in asked("lyrics", "search", folder, "xylophone", "--language", "en")


def test_a_folder_answers_as_the_file_does(index, tmp_path):
    folder, _ = index
    kept = [row for row in rows() if row["id"] not in {"hi", "tr"}]
    file = LyricLibrary.read(written(tmp_path / "lyrics.parquet", kept))
    mapped = LyricLibrary.open(folder)
    for row in kept:
        heard = "".join(next(iter(file.candidates("".join(_phones(file, row["id"])), 1))).song.phones)[20:120]
        assert mapped.candidates(heard, 1)[0].song == file.candidates(heard, 1)[0].song


def _phones(library: LyricLibrary, id: str) -> list[str]:
    segment = library._segments[0]
    songs = (segment.song(number) for number in range(segment.postings.song_count))
    return list(next(song for song in songs if song.id == id).phones)


def test_an_index_of_other_versions_is_refused(index, tmp_path):
    copy = tmp_path / "index"
    shutil.copytree(index[0], copy)
    manifest = json.loads((copy / "index.json").read_text())
    manifest["versions"]["phonemizer"] = "1.0"
    (copy / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(LibraryError, match=r"built with phonemizer 1\.0 .* build it again"):
        LyricLibrary.open(copy)
    assert "build it again" in asked("lyrics", "search", copy, "words", code=1)


def test_bad_libraries_are_refused_and_leave_nothing(tmp_path, index):
    few = [{"id": "a", "text": "words of a song"}]
    out = tmp_path / "out"
    for file, said in (
        (written(tmp_path / "few.parquet", few), "missing: ['title', 'artist', 'language', 'license']"),
        (tmp_path / "none.parquet", "not a Parquet file"),
        (written(tmp_path / "empty.parquet", [{**rows()[0], "text": ""}]), "no song to index"),
    ):
        assert said in " ".join(asked("lyrics", "index", file, "--out", out, code=1).split())
        assert not out.exists()
    assert not list(tmp_path.glob(".out*"))
    good = written(tmp_path / "good.parquet", rows()[:1])
    assert "exists" in asked("lyrics", "index", good, "--out", index[0], code=1)
    assert "is not a lyric index" in " ".join(asked("lyrics", "index", good, "--out", out, "--add", code=1).split())
    assert "there are containment, lsh" in asked("lyrics", "index", good, "--out", out, "--engine", "x", code=2)


def test_a_vocabulary_is_trained_from_a_library(tmp_path):
    library = written(tmp_path / "lyrics.parquet", rows())
    for out in ("a.json", "b.json"):
        asked("lyrics", "train-tokenizer", library, "--out", tmp_path / out, "--size", "700")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    vocabulary = load_vocabulary(tmp_path / "a.json")
    assert vocabulary.get_vocab_size() == 700
    for text in public_domain().values():
        ids = encode(text, vocabulary=vocabulary)
        assert max(ids) < 700
        assert 1 not in ids  # [UNK]
        assert ids[-1] == LINE_END_ID
    assert "exists" in asked("lyrics", "train-tokenizer", library, "--out", tmp_path / "a.json", code=1)
    assert "more than" in asked(
        "lyrics", "train-tokenizer", library, "--out", tmp_path / "c.json", "--size", "9", code=1
    )
    assert "neither a lyric library" in " ".join(
        asked("lyrics", "train-tokenizer", tmp_path, "--out", tmp_path / "c.json", code=1).split()
    )


def test_signatures_of_a_band_collide_only_in_that_band():
    keys = LshSketch(rows=2).keys("abcdefghij" * 10)
    assert len(keys) == 64
