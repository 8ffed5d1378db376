"""`songmill sample` on a random checkpoint: every task, format and way to ask, and what it says when it cannot."""

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.main import get_command
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.sampling import progress
from pipeline.sampling.config import SampleConfig, flag, in_flags
from stages.nets.codec.codec import LATENT_HZ
from tests.support.audio import tone, write
from tests.support.command import asked
from tests.support.places import ROOT
from tests.support.tiny_checkpoint import build, build_audible
from training.sampling import SamplingOptions, audio
from training.sampling.audio import read_audio

QUICK = ("--steps", 2, "--duration", 1, "--prompt", "folk", "--seed", 1)
FRAMES_S = 2 / LATENT_HZ  # an extension has whole frames on either side


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_audible(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("songs") / "source.wav", tone(440, 2.0))


def sampled(*arguments: object) -> list[dict[str, Any]]:
    """The sidecars of `songmill sample ARGUMENTS`, as it prints them; they are also beside the files."""
    printed = json.loads(asked("sample", *arguments, "--quiet", "--json"))
    for sidecar in printed:
        assert json.loads(Path(sidecar["settings"]["out"]).with_suffix(".json").read_text("utf-8")) == sidecar
    return printed


def refused(*arguments: object, code: int = 2) -> str:
    """What `songmill sample ARGUMENTS` says on its way out, on one line."""
    return " ".join(asked("sample", *arguments, "--quiet", code=code).split())


@pytest.mark.parametrize(
    ("task", "arguments", "seconds"),
    [
        ("text2music", (), 1.0),
        ("retake", ("--variance", 0.3), 1.0),
        ("repaint", ("--repaint-start", 0.5, "--repaint-end", 1.5), 2.0),
        ("extend", ("--extend-left", 0.5, "--extend-right", 1), 3.5),
        ("edit", ("--target-prompt", "metal", "--n-min", 0.2), 2.0),
        ("audio2audio", ("--strength", 0.4), 2.0),
    ],
)
def test_every_task_writes_a_song_of_a_random_checkpoint(
    checkpoint: Path, source: Path, tmp_path: Path, task: str, arguments: tuple, seconds: float
):
    if task not in ("text2music", "retake"):
        arguments = (*arguments, "--source", source)
    (sidecar,) = sampled(checkpoint, *QUICK, "--task", task, *arguments, "--out", tmp_path / "song.wav")
    waveform, rate_hz = read_audio(tmp_path / "song.wav")
    assert waveform.shape[-1] / rate_hz == pytest.approx(seconds, abs=FRAMES_S)
    assert waveform.std() > 1e-4
    assert sidecar["settings"]["task"] == task
    assert sidecar["clip"]["duration_s"] == pytest.approx(seconds, abs=FRAMES_S)
    assert ("source" in sidecar["made_with"]) == (task not in ("text2music", "retake"))


def test_a_sidecar_makes_the_same_bytes_again_of_a_random_checkpoint(checkpoint: Path, source: Path, tmp_path: Path):
    (tmp_path / "words.txt").write_text("[verse]\nHello, my love\n", encoding="utf-8")
    drawn = ("--prompt", "folk, “slow”\u2028\x7f", "--steps", 3, "--variance", 0.7, "--lyrics", tmp_path / "words.txt")
    (first,) = sampled(
        checkpoint, *drawn, "--task", "repaint", "--repaint-start", 1, "--source", source, "--out", tmp_path / "a.wav"
    )
    (tmp_path / "words.txt").unlink()  # the sidecar holds the words
    (again,) = sampled("--from", tmp_path / "a.json", "--out", tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert again["clip"]["seed"] == first["clip"]["seed"]
    assert again["made_with"] == first["made_with"]
    sampled("--from", tmp_path / "a.json", "--retake-seed", 5, "--out", tmp_path / "c.wav")
    assert (tmp_path / "a.wav").read_bytes() != (tmp_path / "c.wav").read_bytes()


def test_a_song_of_a_batch_comes_again_alone_of_a_random_checkpoint(checkpoint: Path, tmp_path: Path):
    asked_for = ("--prompt", "folk", "--prompt", "a long prompt: slow, dark, house", "--seed", 5)
    first, second = sampled(checkpoint, *asked_for, "--steps", 2, "--duration", 1, "--out", tmp_path / "song.flac")
    assert [Path(s["settings"]["out"]).name for s in (first, second)] == ["song-1.flac", "song-2.flac"]
    assert [s["clip"]["seed"] for s in (first, second)] == [5, 6]
    assert (tmp_path / "song-1.flac").read_bytes() != (tmp_path / "song-2.flac").read_bytes()
    sampled("--from", tmp_path / "song-2.json", "--out", tmp_path / "again.flac")
    assert (tmp_path / "song-2.flac").read_bytes() == (tmp_path / "again.flac").read_bytes()
    (other,) = sampled("--from", tmp_path / "song-2.json", "--seed", 9, "--out", tmp_path / "other.flac")
    assert (other["clip"]["prompt"], other["clip"]["seed"]) == (second["clip"]["prompt"], 9)


def test_several_seeds_of_one_prompt_of_a_random_checkpoint(checkpoint: Path, tmp_path: Path):
    few = (checkpoint, "--prompt", "folk", "--steps", 1, "--duration", 1, "--seed", 3, "--seed", 8)
    sampled(*few, "--out", tmp_path / "takes" / "{n}-{seed}.ogg")
    names = {path.name for path in (tmp_path / "takes").iterdir()}
    assert names == {"1-3.ogg", "1-3.json", "2-8.ogg", "2-8.json"}
    assert "use {n}" in refused(*few[:-1], 3, "--out", tmp_path / "{seed}.ogg")


def test_a_file_of_settings_under_the_command_line(checkpoint: Path, tmp_path: Path):
    settings = {"prompt": "folk", "steps": 2, "duration": 1, "cfg_type": "cfg", "erg-tag": False, "seed": 4}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**settings, "checkpoint": str(checkpoint)}))
    config = ("--config", tmp_path / "run.yaml")
    (sidecar,) = sampled(*config, "--steps", 1, "--out", tmp_path / "song.wav")
    made = sidecar["settings"]
    assert (made["infer_steps"], made["cfg_type"], made["use_erg_tag"], made["seed"]) == (1, "cfg", False, [4])
    (tmp_path / "run.yaml").write_text("stepps: 3")
    assert "there is no setting stepps; did you mean steps?" in refused(*config)
    (tmp_path / "run.yaml").write_text("- 3")
    assert "expected keys" in refused(*config)


def test_a_lora_is_heard_as_far_as_its_scale_of_a_random_checkpoint(checkpoint: Path, tmp_path: Path):
    weights = load_file(next((checkpoint / "ace_step_transformer").glob("*.safetensors")))
    layer = next(name.removesuffix(".weight") for name in weights if name.endswith("attn.to_q.weight"))
    rows, columns = weights[f"{layer}.weight"].shape
    torch.manual_seed(0)
    factors = {f"{layer}.lora_A.weight": torch.randn(2, columns), f"{layer}.lora_B.weight": torch.randn(rows, 2)}
    save_file(factors, tmp_path / "folk.safetensors")

    def digest(*arguments: object) -> str:
        (sidecar,) = sampled(checkpoint, *QUICK, *arguments, "--out", tmp_path / "song.wav", "--overwrite")
        assert ("loras" in sidecar["made_with"]) == bool(arguments)
        return sidecar["clip"]["sha256"]

    plain, lora = digest(), tmp_path / "folk.safetensors"
    assert digest("--lora", f"{lora}:0") == plain
    assert digest("--lora", lora) != plain
    assert digest("--lora", f"{lora}:0.5") not in (plain, digest("--lora", lora))


def test_a_speaker_is_heard_of_a_random_checkpoint(checkpoint: Path, tmp_path: Path):
    np.save(tmp_path / "voice.npy", np.linspace(-1, 1, 16, dtype=np.float32))
    song = ("--out", tmp_path / "song.wav", "--overwrite")
    (plain,) = sampled(checkpoint, *QUICK, *song)
    (voiced,) = sampled(checkpoint, *QUICK, *song, "--speaker", tmp_path / "voice.npy")
    assert plain["clip"]["sha256"] != voiced["clip"]["sha256"]
    np.save(tmp_path / "voice.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "expected one array" in refused(checkpoint, *QUICK, *song, "--speaker", tmp_path / "voice.npy")


def test_other_weights_than_those_of_a_sidecar_are_told(checkpoint: Path, tmp_path: Path):
    sampled(checkpoint, *QUICK, "--out", tmp_path / "song.wav")
    sidecar = json.loads((tmp_path / "song.json").read_text("utf-8"))
    sidecar["made_with"]["checkpoint"] = "0123456789abcdef"
    (tmp_path / "song.json").write_text(json.dumps(sidecar))
    arguments = ["sample", "--from", str(tmp_path / "song.json"), "--out", str(tmp_path / "again.wav")]
    result = CliRunner().invoke(app, arguments)
    assert "checkpoint was 0123456789abcdef, is " in result.stderr
    assert "sampling 1/2 steps" in result.stderr
    assert "again.wav: 1.0 s, seed 1" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--steps", 0), "--steps: input should be greater than or equal to 1, not 0"),
        (("--duration", 900, "--n-avg", 0), "--duration: input should be less than or equal to 600"),
        (("--guidance", "agp"), "--guidance: input should be 'apg', 'cfg' or 'cfg_star'"),
        (("--seed", -1), "--seed: input should be greater"),
        (("--oss-steps", "3,x"), "--oss-steps"),
        (("--task", "repaint"), "source"),
        (("--task", "retake", "--source", __file__), "takes no source"),
        (("--task", "edit", "--source", __file__), "give it as --target-prompt"),
        (("--task", "audio2audio", "--source", "missing.wav"), "--source: missing.wav does not exist"),
        (("--task", "repaint", "--repaint-start", 4, "--repaint-end", 3), "--repaint-end (3 s) must lie after"),
        (("--lyrics", "missing.txt"), "missing.txt: No such file"),
        (("--language", "klingon"), "klingon"),
        (("--lora", "missing.safetensors:0.5"), "PATH:SCALE"),
        (("--text-encoder", "missing/folder"), "missing/folder is not a folder"),
        (("--device", "tpu"), "--device"),
        (("--seed", 1, "--seed", 2, "--prompt", "a", "--prompt", "b", "--prompt", "c"), "--seed: 3 for 4 songs"),
        (("--out", "song.mp3"), "use .wav, .flac, .ogg"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_its_flag(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, said: str
):
    monkeypatch.chdir(tmp_path)
    assert said in refused(checkpoint, *QUICK, "--out", "song.wav", *arguments)
    assert not any(tmp_path.iterdir())


def test_messages_name_flags_and_leave_paths_alone():
    said = in_flags("tiny/text_encoder/x.json: name another text_encoder, or switch it off with use_erg_tag=False")
    assert said == "tiny/text_encoder/x.json: name another --text-encoder, or switch it off with --no-erg-tag"


def test_what_is_missing_is_asked_for(checkpoint: Path):
    said = refused()
    assert all(f"{name} is missing" in said for name in ("CHECKPOINT", "--prompt", "--out"))


def test_a_window_outside_the_source_and_a_source_without_audio(checkpoint: Path, source: Path, tmp_path: Path):
    repaint = (checkpoint, *QUICK, "--task", "repaint", "--out", tmp_path / "song.wav", "--source")
    assert "extend" in refused(*repaint, source, "--repaint-start", 1, "--repaint-end", 9)
    (tmp_path / "words.wav").write_text("words")
    assert "words.wav" in refused(*repaint, tmp_path / "words.wav")
    assert "would replace the --source" in refused(*repaint[:-2], source, "--source", source, "--overwrite")


def test_lyrics_that_are_too_long(checkpoint: Path, tmp_path: Path):
    (tmp_path / "words.txt").write_text("la la la la la la\n" * 1200)
    said = refused(checkpoint, *QUICK, "--lyrics", tmp_path / "words.txt", "--out", tmp_path / "song.wav")
    assert "4096" in said


def test_a_checkpoint_with_a_problem_is_a_matter_of_data(checkpoint: Path, tmp_path: Path):
    song = (*QUICK, "--out", tmp_path / "song.wav")
    assert "CHECKPOINT: nowhere does not exist" in refused("nowhere", *song)
    assert "ace_step_transformer" in refused(tmp_path, *song, code=1)
    broken = build(tmp_path / "broken")
    (file,) = (broken / "ace_step_transformer").glob("*.safetensors")
    weights = load_file(file)
    name = next(iter(weights))
    save_file({**weights, name: torch.full_like(weights[name], float("nan"))}, file)
    said = refused(broken, *song, code=1)
    assert name in said
    assert "NaN" in said
    assert not (tmp_path / "song.wav").exists()


def test_existing_files_are_left_alone(checkpoint: Path, tmp_path: Path):
    (tmp_path / "song.json").write_text("mine")
    assert "song.json would be replaced" in refused(checkpoint, *QUICK, "--out", tmp_path / "song.wav")
    assert (tmp_path / "song.json").read_text() == "mine"
    sampled(checkpoint, *QUICK, "--out", tmp_path / "song.wav", "--overwrite")


def test_an_interrupted_run_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(audio, "_frame", interrupt)
    assert "interrupted" in refused(checkpoint, *QUICK, "--out", tmp_path / "song.wav", code=130)
    assert not any(tmp_path.iterdir())


def test_a_terminal_shows_steps_and_the_time_left(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    terminal = partial(Console, file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "Console", lambda stderr: terminal())
    with progress.shown(enabled=True) as watch:
        watch("loading", 0, 0)
        watch("sampling", 9, 27)
    text = screen.getvalue()
    assert "sampling" in text
    assert "9/27" in text
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=screen))
    monkeypatch.setattr(progress, "_LINE_INTERVAL_S", 0)
    with progress.shown(enabled=True) as watch:
        for step in range(1, 28):
            watch("sampling", step, 27)
    assert "sampling 9/27 steps, ETA 0 s" in screen.getvalue()


def test_every_setting_has_its_flag_and_shows_its_default():
    flags = {option.name: option for option in get_command(app).commands["sample"].params}
    settings = SampleConfig.model_fields.keys() - {"lyrics_text", "target_lyrics_text", "item"}
    assert flags.keys() - {"config", "overwrite", "as_json", "quiet"} == settings
    for name in settings - {"checkpoint"}:
        assert flags[name].opts == [flag(name)]
    for name, field in SamplingOptions.model_fields.items():
        if field.default not in (None, ()):
            shown = flags[name].show_default
            assert (shown == "on") if field.default is True else (type(field.default)(shown) == field.default)


def test_the_command_line_starts_without_torch():
    assert "songmill sample --from song.json" in asked("sample", "--help")
    loaded = "import sys, pipeline.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, check=False).returncode == 0
