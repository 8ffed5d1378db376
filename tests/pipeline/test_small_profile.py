"""The whole small profile on two real songs, through the real commands, from the songs to a new one."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import load_dataset
from rich.console import Console

from pipeline.demo.input import DemoInput, prepare
from pipeline.demo.promise import KEPT, Promise, Verdict
from pipeline.demo.story import QUICK, Demo
from pipeline.models.store import ModelStore
from schemas import columns
from schemas.dataset import FOOTER_SHARD_DIGEST
from tests.support.audio import write
from tests.support.command import asked, queried, songmill
from tests.support.tracks import load

PROMISE = Promise(
    verdicts={
        "sung.flac": KEPT,
        "played.flac": KEPT,
        "played, re-encoded.mp3": Verdict("filtered", "dedup", "near_duplicate"),
        "truncated.mp3": Verdict("failed", "decode", "TruncatedAudio"),
        "notes.wav": Verdict("failed", "decode", "NotAudio"),
    },
    lyrics={"sung.flac": "static_in_the_air"},
)


pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def story(audio: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, str]:
    """The demo with songs of ours and a few steps of training, and what it told."""
    folder = tmp_path_factory.mktemp("small")
    library = prepare(folder / "input", ModelStore()).library
    songs = folder / "songs"
    songs.mkdir()
    write(songs / "sung.flac", load(audio("demo-songs", "audio_ace_step_1_5_split_4b-1.mp3"), seconds=32, start_s=8))
    played = load(audio("demo-music", "happy_electronic_1.opus"), seconds=16)
    write(songs / "played.flac", played)
    whole = write(songs / "played, re-encoded.mp3", played, kbps=96).read_bytes()
    (songs / "truncated.mp3").write_bytes(whole[: len(whole) // 3])
    (songs / "notes.wav").write_text("no audio at all\n")
    demo = Demo(folder, DemoInput(songs, library), QUICK, PROMISE)
    return demo, told(demo)


def told(demo: Demo) -> str:
    """What the demo tells; one worker has all the models in memory, which two would load twice."""

    def run(command: Sequence[str]) -> int:
        if command[0] == "curate":  # it starts a cluster
            songmill(*command, "--set", "resources.workers=1")
        else:
            asked(*command)
        return 0

    console = Console(file=io.StringIO(), width=200)
    assert demo.tell(run, console) == 0
    return console.file.getvalue()


@pytest.fixture(scope="module")
def demo_dataset(story: tuple[Demo, str]) -> Path:
    return story[0].dataset


@pytest.fixture(scope="module")
def songs(demo_dataset: Path) -> dict[str, dict]:
    rows = [row for path in (demo_dataset / "shards").iterdir() for row in pq.read_table(path).to_pylist()]
    return {Path(row["uri"]).stem: row for row in rows}


def test_both_songs_have_every_column_and_every_figure_says_what_made_it(songs):
    assert set(songs) == {"sung", "played"}
    for row in songs.values():
        measured = {name: value for name, value in row.items() if isinstance(value, dict) and "model" in value}
        assert {
            "audio",
            "quality",
            "events",
            "vocals",
            "transcript",
            "phonemes",
            "lyrics",
            "rhythm",
            "key",
            "tags",
        } <= set(measured)
        assert {"sections", "caption", "lyric_tokens", "speaker", "dedup"} <= set(measured)
        assert all(value["model"] for value in measured.values())
        assert row["verdict"]["status"] == "kept"
        assert row["flags"] == ["license_unknown"]


def test_the_fixed_names_have_their_types(demo_dataset: Path):
    schema = pq.read_schema(next((demo_dataset / "shards").iterdir()))
    for name in ("audio", "quality", "events", "vocals", "transcript", "phonemes", "lyrics", "rhythm", "key", "tags"):
        assert schema.field(name).type == getattr(columns, name.upper())
    assert schema.field("rhythm").type.field("bpm").metadata == {b"unit": b"beats/min"}


def test_the_sung_song_is_read_and_found_in_the_library(songs):
    sung = songs["sung"]
    assert sung["vocals"]["has_vocals"]
    assert sung["transcript"]["language"] == "en"
    assert "shadows" in sung["transcript"]["text"].lower()
    assert sung["lyrics"]["song_id"] == "static_in_the_air"
    timed = [line for line in sung["lyrics"]["lines"] if line["start_s"] is not None]
    assert all(0 <= line["start_s"] <= line["end_s"] <= 32.5 for line in timed)
    assert len(sung["phonemes"]["lines"]) == len(sung["transcript"]["segments"])
    assert np.linalg.norm(sung["speaker"]["embedding"]) == pytest.approx(1, abs=1e-3)


def test_the_instrumental_has_no_words_and_no_singer(songs):
    played = songs["played"]
    assert not played["vocals"]["has_vocals"]
    assert played["transcript"]["text"] == "[inst]"
    assert played["lyrics"]["song_id"] is None
    assert "[inst]" in played["lyric_tokens"]["text"]
    assert not any(played["speaker"]["embedding"])
    assert played["rhythm"]["bpm"] == pytest.approx(123, rel=0.01)


def test_features_lie_beside_the_shard_row_by_row(demo_dataset: Path):
    record = next(json.loads(path.read_text()) for path in (demo_dataset / "_songmill/commits").iterdir())
    for name in ("latents", "ssl", "text_embedding"):
        for path in (demo_dataset / "features" / name).iterdir():
            shard = demo_dataset / "shards" / path.name
            footer = pq.read_metadata(path).metadata
            assert footer[FOOTER_SHARD_DIGEST].decode() == record["files"][f"shards/{path.name}"]
            assert pq.read_table(path)["row_id"] == pq.read_table(shard)["row_id"]
    states = pq.read_table(demo_dataset / "features/ssl")["ssl"].to_pylist()
    for row in states:
        encoder = row["whisper_base"]
        assert len(encoder["data"]) == encoder["frames"] * encoder["dim"]
        assert len(encoder["scales"]) == 2 * encoder["frames"]
    variants = pq.read_table(demo_dataset / "features/text_embedding")["text_embedding"].to_pylist()
    assert all(len(item["data"]) == 2 * item["tokens"] * item["dim"] for row in variants for item in row)


def test_the_folder_is_a_dataset_as_it_is(demo_dataset: Path, tmp_path: Path):
    tracks = load_dataset(str(demo_dataset), split="train", cache_dir=str(tmp_path))
    assert sorted(Path(uri).stem for uri in tracks["uri"]) == ["played", "sung"]
    features = load_dataset(str(demo_dataset), "ssl", split="train", cache_dir=str(tmp_path))
    assert features["row_id"] == tracks["row_id"]
    assert queried(demo_dataset, "select max(rhythm.bpm) > 100 as fast from tracks") == [{"fast": True}]
    assert "as committed" in asked("verify", demo_dataset)


def test_verify_finds_a_flipped_byte_and_a_lost_file(demo_dataset: Path, tmp_path: Path):
    copy = shutil.copytree(demo_dataset, tmp_path / "copy")
    shard = next((copy / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    next((copy / "features/ssl").iterdir()).unlink()
    said = json.loads(asked("verify", copy, "--json", code=1))["problems"]
    assert any("content differs from what was committed" in problem for problem in said)
    assert any("missing" in problem for problem in said)


def test_a_song_comes_of_it(story: tuple[Demo, str]):
    demo, said = story
    samples, rate = soundfile.read(demo.song, dtype="float32")
    assert (rate, samples.shape) == (48_000, (2 * 48_000, 2))
    assert 0.001 < np.abs(samples).mean() < 0.5
    assert said.count("loss ") == 2
    assert [line for line in said.splitlines() if line.startswith("$ songmill sample")]
    assert "sung: 1" in said or "verse" in said  # what was found in the songs
    before = demo.song.stat().st_mtime_ns
    again = told(demo)
    assert f"{demo.checkpoint} exists already" in again
    assert demo.song.stat().st_mtime_ns == before
