"""What the commands say: help with examples, plans, errors with an exit code that tells whose turn it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import asked, songmill


def test_the_command_line_is_there_before_anything_heavy_is():
    heavy = {"ray", "torch", "gradio", "transformers", "pyarrow", "numpy", "duckdb", "pandas", "pydantic", "av"}
    loaded = "import pipeline.cli, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout.split()
    assert "pipeline.commands.lyrics" in modules
    assert heavy.isdisjoint(modules)


@pytest.mark.parametrize("command", ["curate", "plan", "inspect", "verify", "demo", "doctor"])
def test_help_shows_an_example(command: str):
    assert f"songmill {command}" in asked(command, "--help")


@pytest.mark.models
def test_the_plan_shows_stages_columns_models_and_operators():
    text = asked("plan")
    for word in (
        "decode",
        "vocal_stem",
        "spleeter-2stems",
        "faster-whisper",
        "min_bandwidth_hz=7000",
        "similarity >= 0.4",
    ):
        assert word in text


@pytest.mark.models
def test_the_plan_as_json_names_both_passes():
    plan = json.loads(asked("plan", "--json", "--add", "ssl", "--set", "transcript.beam_size=1"))
    assert plan["scan"] == ["decode", "quality", "fingerprint"]
    (operator,) = plan["operators"]
    assert operator[0] == "decode"
    assert "ssl" in operator
    assert plan["columns"]["transcript"]["params"]["beam_size"] == 1
    assert plan["columns"]["transcript"]["reads"] == ["vocal_stem", "vocals", "language"]
    assert set(plan["columns"]["vocals"]["models"]) == {"spleeter-2stems"}


def test_a_missing_model_is_named_with_the_command_that_fetches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SONGMILL_MODELS", str(tmp_path))
    said = asked("plan", "--stages", "decode,events", code=2)
    assert "songmill models pull yamnet" in said


def test_a_plan_that_lacks_models_is_shown_with_what_is_known_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SONGMILL_MODELS", str(tmp_path))
    told, _ = songmill("plan", "--profile", "full", "--json", code=2, SONGMILL_MODELS=str(tmp_path))
    plan = json.loads(told)
    assert plan["missing"]["htdemucs"].endswith("songmill models pull htdemucs")
    assert plan["columns"]["vocals"]["resources"]["gpus"] == 0.2
    assert plan["weights_bytes"]["vocals"] is None  # nobody publishes its size with its hash
    assert plan["weights_bytes"]["tags"] > 5_000_000
    assert plan["weights_bytes"]["quality"] == 0
    said = " ".join(asked("plan", "--profile", "full", code=2).split())
    assert "demucs" in said
    assert "curate would refuse this plan" in said


def test_a_folder_that_is_no_dataset(tmp_path: Path):
    for command in (("inspect", tmp_path), ("inspect", tmp_path, "--sql", "select 1"), ("verify", tmp_path)):
        assert "is no songmill dataset" in asked(*command, code=1)


@pytest.mark.models
def test_an_input_without_songs_and_an_output_with_strange_shards(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "no songs" in asked("curate", tmp_path / "empty", "--out", tmp_path / "out", code=1)
    shards = tmp_path / "theirs" / "shards"
    shards.mkdir(parents=True)
    (shards / "train-000000.parquet").write_bytes(b"somebody's")
    (tmp_path / "empty" / "song.mp3").write_bytes(b"")
    said = asked("curate", tmp_path / "empty", "--out", tmp_path / "theirs", "--stages", "decode", code=1)
    assert "choose another --out" in " ".join(said.split())
    assert (shards / "train-000000.parquet").read_bytes() == b"somebody's"


def test_an_input_is_asked_for():
    assert "input.path" in asked("curate", "--out", "dataset", code=2)


def test_a_mistyped_profile():
    assert "choose one of small, full" in asked("plan", "--profile", "smal", code=2)
