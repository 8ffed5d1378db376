import io
import json
from pathlib import Path

import av
import mutagen
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.demo import input as demo
from pipeline.models.store import ModelStore


@pytest.fixture(scope="module")
def store() -> ModelStore:
    return ModelStore()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, store: ModelStore) -> demo.DemoInput:
    return demo.prepare(tmp_path_factory.mktemp("demo"), store)


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)


def duration_s(path: Path) -> float:
    with av.open(str(path)) as file:
        return sum(frame.samples for frame in file.decode(audio=0)) / file.streams.audio[0].rate


def manifest(prepared: demo.DemoInput) -> dict[str, dict]:
    rows = [json.loads(line) for line in prepared.songs.read_text().splitlines()]
    return {Path(row["uri"]).name: row for row in rows}


def test_manifest_lists_every_file_once(prepared: demo.DemoInput) -> None:
    rows = manifest(prepared)
    folder = prepared.songs.parent
    assert sorted(rows) == sorted(path.name for path in (folder / "songs").iterdir())
    assert len(rows) == 10
    for row in rows.values():
        assert (folder / row["uri"]).is_file()
        assert row["license"] == "MIT"
        assert row["title"]
        assert row["artist"]
        assert row["source"].startswith("https://")
    assert not any("language" in row or "lyrics" in row for row in rows.values())  # they are to be heard


def test_no_file_tells_how_it_was_made(prepared: demo.DemoInput, store: ModelStore) -> None:
    source = store.resolve("demo-songs").path / "audio_ace_step_1_5_split_4b-1.mp3"
    assert mutagen.File(source).tags  # there is something to strip
    for path in (prepared.songs.parent / "songs").glob("*.mp3"):
        assert not mutagen.File(path).tags
        for told in (b"prompt", b"Static in the air", b"workflow", b"ID3"):
            assert told not in path.read_bytes()


def test_songs_are_cut_without_a_new_encoding(prepared: demo.DemoInput, store: ModelStore) -> None:
    cut = prepared.songs.parent / "songs" / "static_in_the_air.mp3"
    assert duration_s(cut) == pytest.approx(60, abs=0.1)
    assert mutagen.File(cut).info.length == pytest.approx(60, abs=0.1)
    source = decoded(store.resolve("demo-songs").path / "audio_ace_step_1_5_split_4b-1.mp3")
    samples = decoded(cut)
    second = 48_000
    window = samples[:, 10 * second : 11 * second]
    starts = range(10 * second - 2400, 10 * second + 2400)
    found = min(starts, key=lambda start: np.abs(source[:, start : start + second : 97] - window[:, ::97]).mean())
    np.testing.assert_array_equal(source[:, found : found + second], window)


def test_japanese_song_and_instrumentals_decode(prepared: demo.DemoInput) -> None:
    folder = prepared.songs.parent / "songs"
    assert duration_s(folder / "fuwafuwa.mp3") == pytest.approx(29.9, abs=0.1)
    for path in folder.glob("*.opus"):
        assert 25 < duration_s(path) < 40


def test_duplicates_and_broken_files_are_what_they_claim(prepared: demo.DemoInput) -> None:
    folder = prepared.songs.parent / "songs"
    original, copy = folder / "calm_acoustic_1.opus", folder / "calm_acoustic_1_copy.opus"
    assert copy.read_bytes() == original.read_bytes()

    original, near = folder / "happy_electronic_1.opus", folder / "happy_electronic_1_96k.mp3"
    assert duration_s(near) == pytest.approx(duration_s(original), abs=0.1)
    with av.open(str(near)) as file:
        assert file.streams.audio[0].bit_rate == 96_000

    promised = mutagen.File(folder / "truncated.mp3").info.length
    assert duration_s(folder / "truncated.mp3") < promised / 2
    with pytest.raises(av.error.InvalidDataError):
        av.open(io.BytesIO((folder / "notes.wav").read_bytes()))


def test_library_holds_the_songs_and_their_distractors(prepared: demo.DemoInput) -> None:
    library = pq.read_table(prepared.library)
    assert library.column_names == ["id", "title", "artist", "language", "text", "license"]
    rows = {row["id"]: row for row in library.to_pylist()}
    assert len(rows) == library.num_rows == 4
    assert "Shout it out, I’m alive tonight" in rows["static_in_the_air"]["text"]
    assert "きらきら" in rows["fuwafuwa"]["text"]
    assert rows["fuwafuwa"]["language"] == "ja"
    assert all(row["license"] == "MIT" for row in rows.values())
    titles = {row["title"] for row in manifest(prepared).values()}
    assert sum(row["title"] in titles for row in rows.values()) == 2


def test_prepare_is_deterministic_and_idempotent(prepared: demo.DemoInput, store: ModelStore, tmp_path: Path) -> None:
    def state(root: Path, *, with_time: bool) -> dict[str, tuple]:
        files = (path for path in root.rglob("*") if path.is_file())
        return {
            path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns if with_time else 0)
            for path in files
        }

    folder = prepared.songs.parent
    demo.prepare(tmp_path, store)
    assert state(tmp_path, with_time=False) == state(folder, with_time=False)
    before = state(folder, with_time=True)
    (folder / "songs" / "fuwafuwa.mp3").write_bytes(b"half a file")
    demo.prepare(folder, store)
    after = state(folder, with_time=True)
    assert {name for name in after if after[name] != before[name]} == {"songs/fuwafuwa.mp3"}
    assert after["songs/fuwafuwa.mp3"][0] == before["songs/fuwafuwa.mp3"][0]
