import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import av
import mutagen
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.demo import input as demo
from pipeline.demo.promise import KEPT, PROMISE, PromiseBroken, Verdict, differences_of_dataset, differences_of_song
from pipeline.demo.story import QUICK, Demo
from pipeline.errors import DataProblem
from pipeline.models.store import ModelStore
from schemas.commits import Commit
from schemas.dataset import Layout
from schemas.files import file_digest
from tests.support.audio import silence, tone, write
from tests.support.command import cold_caches, songmill

pytestmark = pytest.mark.models  # the songs of the demo


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


class TestPromise:
    """The comparison, on datasets and songs that are doctored."""

    @pytest.fixture
    def outcome(self) -> dict[str, tuple[Verdict, str | None]]:
        """What was promised: file name -> verdict and song of the library."""
        return {name: (verdict, PROMISE.lyrics.get(name)) for name, verdict in PROMISE.verdicts.items()}

    def differences(self, folder: Path, outcome: Mapping[str, tuple[Verdict, str | None]]) -> list[str]:
        return differences_of_dataset(PROMISE, written(folder, outcome))

    def test_it_holds_for_the_files_that_the_demo_makes(self, prepared: demo.DemoInput):
        assert set(manifest(prepared)) == set(PROMISE.verdicts)
        counts = Counter(verdict.status for verdict in PROMISE.verdicts.values())
        assert counts == {"kept": 6, "filtered": 2, "failed": 2}
        assert {*PROMISE.lyrics.values()} < {*pq.read_table(prepared.library)["id"].to_pylist()}

    def test_what_was_promised_is_no_difference_whichever_of_two_copies_is_kept(self, tmp_path: Path, outcome):
        assert self.differences(tmp_path / "a", outcome) == []
        copy, original = "calm_acoustic_1_copy.opus", "calm_acoustic_1.opus"
        outcome[copy], outcome[original] = outcome[original], outcome[copy]
        assert self.differences(tmp_path / "b", outcome) == []
        outcome[original] = outcome[copy]
        assert self.differences(tmp_path / "c", outcome) == [
            f"{copy} should be filtered by dedup (exact_duplicate) and is kept: because"
        ]

    def test_a_worker_that_died_a_row_that_is_away_and_one_too_many(self, tmp_path: Path, outcome):
        outcome["fuwafuwa.mp3"] = (Verdict("failed", "key", "WorkerDied"), None)
        outcome["other.mp3"] = (KEPT, None)
        del outcome["notes.wav"]
        assert self.differences(tmp_path, outcome) == [
            "fuwafuwa.mp3 should be kept and is failed by key (WorkerDied): because",
            "notes.wav should be failed by decode (NotAudio) and is absent",
            "other.mp3 should be absent and is kept: because",
        ]

    def test_the_wrong_reason_and_the_wrong_lyrics(self, tmp_path: Path, outcome):
        outcome["truncated.mp3"] = (Verdict("failed", "decode", "NotAudio"), None)
        outcome["fuwafuwa.mp3"] = (KEPT, None)
        outcome["static_in_the_air.mp3"] = (KEPT, "turn_it_up")
        outcome["calm_acoustic_1.opus"] = (KEPT, "turn_it_up")
        assert self.differences(tmp_path, outcome) == [
            "truncated.mp3 should be failed by decode (TruncatedAudio) and is failed by decode (NotAudio): because",
            "calm_acoustic_1.opus should have the lyrics of no song and has those of turn_it_up",
            "fuwafuwa.mp3 should have the lyrics of fuwafuwa and has those of no song",
            "static_in_the_air.mp3 should have the lyrics of static_in_the_air and has those of turn_it_up",
        ]

    def test_a_song_decodes_is_as_long_as_it_was_to_be_and_can_be_heard(self, tmp_path: Path):
        song = write(tmp_path / "song.wav", tone(440, 2))
        assert differences_of_song(song, 2.0) == []
        assert differences_of_song(song, 15.0) == [f"{song} should be 15.0 s long and is 2.0 s"]
        quiet = write(tmp_path / "quiet.wav", silence(2))
        assert differences_of_song(quiet, 2.0) == [f"{quiet} is silent: RMS 0 of full scale"]
        (tmp_path / "text.wav").write_text("no song\n")
        for name in ("text.wav", "gone.wav"):
            (said,) = differences_of_song(tmp_path / name, 2.0)
            assert said.startswith(f"{tmp_path / name} cannot be decoded: ")

    def test_the_story_ends_where_the_dataset_is_another(self, tmp_path: Path, outcome, prepared, monkeypatch):
        monkeypatch.setattr("pipeline.demo.story.show_songs", lambda *_: None)
        outcome["fuwafuwa.mp3"] = (Verdict("failed", "key", "WorkerDied"), None)
        told = Demo(tmp_path, prepared, QUICK)
        written(told.dataset, outcome)
        ran: list[str] = []
        with pytest.raises(PromiseBroken, match=r"fuwafuwa.mp3 should be kept and is failed by key") as broken:
            told.tell(lambda command: ran.append(command[0]) or 0, Console(file=io.StringIO()))
        assert ran == ["curate", "inspect"]
        assert isinstance(broken.value, DataProblem)  # of which the command makes exit code 1
        assert "songmill doctor" in str(broken.value)


def written(folder: Path, outcome: Mapping[str, tuple[Verdict, str | None]]) -> Layout:
    """A dataset of which only what the promise speaks of is there."""
    (folder / "_songmill/commits").mkdir(parents=True)
    files = {}
    for name, kept in (("shards/train-000000.parquet", True), ("quarantine/part-000000.parquet", False)):
        rows = [
            {
                "uri": f"somewhere/{song_name}",
                "verdict": {**asdict(verdict), "message": "because"},
                "lyrics": {"song_id": song},
            }
            for song_name, (verdict, song) in outcome.items()
            if (verdict == KEPT) == kept
        ]
        path = folder / name
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, _DOCTORED), path)
        files[name] = file_digest(path)
    record = Commit(unit=0, plan="toy", files=files, rows={}, timings={})
    (folder / "_songmill/commits/000000.json").write_text(record.model_dump_json())
    return Layout.at(folder)


_WORDS = [pa.field(name, pa.string()) for name in ("status", "stage", "reason", "message")]
_DOCTORED = pa.schema(
    {"uri": pa.string(), "verdict": pa.struct(_WORDS), "lyrics": pa.struct([pa.field("song_id", pa.string())])}
)


@pytest.mark.ray
@pytest.mark.slow
def test_the_demo_s_curation_on_cold_caches_keeps_its_promise(prepared: demo.DemoInput, tmp_path: Path):
    command = ("curate", prepared.songs, "--lyrics", prepared.library, "--out", tmp_path / "dataset")
    said, _ = songmill(*command, **cold_caches(tmp_path / "caches"))
    assert "10 rows = 6 kept + 2 filtered + 2 failed (10 worked on, 0 unchanged)" in said
    assert differences_of_dataset(PROMISE, Layout.at(tmp_path / "dataset")) == []
