"""`songmill train`: runs that go on where they stopped, what they leave behind, and checkpoints that can be sampled."""

import json
import os
import signal
import struct
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import init_empty_weights
from tensorboardX.proto.event_pb2 import Event

from pipeline.execution.cluster import cluster
from pipeline.train import dit as train_module
from pipeline.train.dit_config import FLAGS, build_config
from schemas.config import ResourceConfig
from schemas.dataset import Layout
from stages.lyric_tokens import load_vocabulary
from tests.support import plain_workers, tiny_checkpoint
from tests.support.command import asked
from tests.support.s3_server import BUCKET, s3_server
from tests.support.toy_dataset import write_dataset
from training.checkpoints.lora import Lora, load_loras
from training.checkpoints.released_layout import load_transformer
from training.data import Widths
from training.dit.config import TrainConfig
from training.dit.distributed import train_on_ray
from training.dit.memory_estimate import estimate
from training.dit.objective import Objective
from training.dit.presets import PRESETS, deep_merge, next_smaller
from training.dit.trainer import Trainer, make_trainable, model_sizes
from training.model import ACEStepTransformer2DModel
from training.run.run_folder import RunFolder
from training.sampling.audio import read_audio

MODEL = {
    "num_layers": 2,
    "inner_dim": 32,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "lyric_encoder_vocab_size": load_vocabulary().get_vocab_size(),
    "lyric_hidden_size": 32,
}
WIDTHS = Widths(text=768, speaker=512, ssl={"mert": 1024, "m-hubert": 768}, ssl_rate_hz={})


@pytest.fixture(scope="module")
def toy_songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs whose features are as wide as the tiny checkpoint takes them."""
    return write_dataset(
        tmp_path_factory.mktemp("data") / "songs", 16, ssl={"mert": 12, "m-hubert": 10}, frames=(9, 30)
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For runs of seconds."""
    file = tmp_path_factory.mktemp("settings") / "quick.yaml"
    optimizer = {"lr": 1e-3, "warmup_steps": 2}
    quick = {"steps": 6, "log_every": 1, "save_every": 4, "validate_every": 0, "optimizer": optimizer, "model": MODEL}
    data = {"batch_size": 2, "max_lyric_ids": 32, "validation_share": 0.2}
    file.write_text(json.dumps(quick | {"data": data}))
    return file


def _trained(dataset: Path | str, settings: Path, out: Path, *more: object, code: int = 0) -> str:
    return asked("train", "dit", dataset, "--out", out, "--config", settings, "--device", "cpu", *more, code=code)


def _losses(run: Path) -> list[tuple[int, float, float]]:
    return [(step["step"], step["loss"], step["gradient_norm"]) for step in RunFolder(run).figures()]


def _events(folder: Path) -> dict[str, list[int]]:
    """Steps of each scalar in TensorBoard's event files."""
    steps: dict[str, list[int]] = {}
    for file in sorted(folder.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
            at += 12 + length + 4
    return steps


def test_a_dataset_in_a_bucket_trains_as_the_same_one_in_a_folder(toy_songs, settings, tmp_path):
    few = ("--ssl", "mert", "--steps", 2, "--quiet")
    _trained(toy_songs, settings, tmp_path / "folder", *few)
    with s3_server():
        layout = Layout.at(f"s3://{BUCKET}/songs")
        files = [path for path in toy_songs.rglob("*") if path.is_file()]
        with layout.store.writing():
            layout.store.publish({path.relative_to(toy_songs).as_posix(): path.read_bytes() for path in files})
        _trained(layout.url, settings, tmp_path / "bucket", *few)
    assert _losses(tmp_path / "bucket") == _losses(tmp_path / "folder")


def test_the_same_command_goes_on_and_leaves_figures_events_and_a_card(toy_songs, settings, tmp_path):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    quiet = ("--ssl", "mert", "--where", "license like 'CC-BY%'", "--set", "validate_every=3", "--quiet")
    last = json.loads(_trained(toy_songs, settings, whole, *quiet, "--json"))
    assert (last["step"], last["loss"]) == _losses(whole)[-1][:2]
    assert "validation/loss" in last
    _trained(toy_songs, settings, halved, *quiet, "--steps", 3)
    assert "halved: 6 steps, loss" in _trained(toy_songs, settings, halved, *quiet)
    assert _losses(halved) == _losses(whole)
    assert _events(halved / "tensorboard")["loss"] == [1, 2, 3, 4, 5, 6]
    assert _events(halved / "tensorboard")["validation/sigma_0.9"] == [3, 6]

    card = (halved / "README.md").read_text()
    hours = RunFolder(halved).progress(6)["stream"]["hours"]["license"]
    assert set(hours) == {"CC-BY-4.0", "CC-BY-SA-4.0"}
    assert all(f"| license | {name} | {heard:.3f} |" in card for name, heard in hours.items())
    assert f"| 6 | {last['loss']:.4f} | {last['validation/loss']:.4f} |" in card
    assert "license like 'CC-BY%'" in card
    assert "% of the frames were padding" in card
    assert "measured peak" in card
    before = card, _losses(halved)
    _trained(toy_songs, settings, halved, *quiet)  # nothing is left to do
    assert before == ((halved / "README.md").read_text(), _losses(halved))


def test_ctrl_c_lets_the_step_end_and_saves(toy_songs, settings, tmp_path, monkeypatch):
    class Impatient(train_module.TensorBoard):
        def __call__(self, figures: dict[str, float]) -> None:
            super().__call__(figures)
            if figures["step"] == 3:
                signal.raise_signal(signal.SIGINT)

    _trained(toy_songs, settings, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(train_module, "TensorBoard", Impatient)
        said = _trained(toy_songs, settings, tmp_path / "stopped", code=130)
    assert "checkpoint of step 3 is saved, and the same command resumes from it" in said
    assert RunFolder(tmp_path / "stopped").steps() == [3]
    assert "resuming from step 3 of 6" in _trained(toy_songs, settings, tmp_path / "stopped")
    assert _losses(tmp_path / "stopped") == _losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--lr", -1, "--steps", 0), 2, ["--lr: input should be greater than 0", "--steps: input should be greater"]),
        (("--set", "optimizer.lrr=1"), 2, ["no such setting; did you mean optimizer.lr?"]),
        (("--set", "seed"), 2, ["--set seed: expected key.sub=value"]),
        (("--preset", "huge"), 2, ["--preset: there is no huge; choose from pretrain"]),
        (("--preset", "12gb"), 2, ["lora adapts a trained model"]),
        (("--checkpoint", "nowhere"), 2, ["--checkpoint", "is not a folder"]),
        (("--set", "model={}"), 0, None),
        (("--where", "loudness > 3"), 1, ["loudness"]),
        (("--ssl", "wav2vec"), 1, ["wav2vec", "mert"]),
    ],
)
def test_what_cannot_be_done_is_told_by_its_flag(toy_songs, settings, tmp_path, arguments, code, said):
    if said is None:  # the toy songs' lyrics were encoded with a vocabulary that nobody has
        said, code, settings = ["encoded with toy: give that file as --vocabulary"], 2, tmp_path / "empty.yaml"
        settings.write_text("{}")
        arguments = ()
    told = " ".join(_trained(toy_songs, settings, tmp_path / "run", *arguments, "--quiet", code=code).split())
    assert all(part in told for part in said), told
    assert "Traceback" not in told


def test_another_run_in_the_folder_is_refused_and_no_memory_is_told_with_a_smaller_preset(
    toy_songs, settings, tmp_path, monkeypatch
):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Objective, "__call__", full)
        said = _trained(toy_songs, settings, tmp_path / "run", "--preset", "tiny", "--quiet", code=1)
    assert "out of memory: take --preset tiny,80gb" in said
    _trained(toy_songs, settings, tmp_path / "run", "--quiet")  # no step was taken, so it may be another run now
    refused = _trained(toy_songs, settings, tmp_path / "run", "--lr", 0.5, "--quiet", code=1)
    assert "optimizer.lr: 0.001 -> 0.5" in refused
    assert next_smaller(["finetune", "24gb"]) == ["finetune", "12gb"]
    assert next_smaller(["finetune", "8gb"]) is None


def test_an_exported_run_of_random_weights_is_sampled(toy_songs, settings, checkpoint, tmp_path):
    _trained(toy_songs, settings, tmp_path / "run", "--ssl", "mert", "--set", "ema=0.5", "--quiet")
    trainer = Trainer(TrainConfig.model_validate_json((tmp_path / "run/config.json").read_text()), tmp_path / "run")
    for name, flags in {"last": (), "average": ("--average",), "early": ("--step", 4)}.items():
        text = ("--text-encoder", checkpoint / "umt5-base")
        asked("train", "export", tmp_path / "run", "--out", tmp_path / name, "--codec", checkpoint, *text, *flags)
    last, average, early = (
        dict(load_transformer(tmp_path / n).named_parameters()) for n in ("last", "average", "early")
    )
    for name, weight in trainer.transformer.named_parameters():
        assert torch.equal(last[name], weight)
        assert torch.equal(average[name], trainer.average.weights[name] if weight.requires_grad else weight)
    assert not torch.equal(early["final_layer.linear.weight"], last["final_layer.linear.weight"])
    out = tmp_path / "song.wav"
    asked("sample", tmp_path / "last", "--prompt", "folk", "--steps", 2, "--duration", 1, "--out", out, "--quiet")
    assert out.stat().st_size > 48_000


def test_songs_of_a_random_checkpoint_are_heard_on_the_way_and_change_no_step(
    toy_songs, settings, checkpoint, tmp_path
):
    """By prompts given on the command line."""
    sampling = "{duration: 1, infer_steps: 2}"
    new = ("--set", f"samples.codec={checkpoint}", "--set", f"samples.text_encoder={checkpoint / 'umt5-base'}")
    heard = ("--sample-prompt", "calm piano", "--sample-prompt", "folk", "--set", "samples.every=4", *new)
    _trained(toy_songs, settings, tmp_path / "heard", *heard, "--set", f"samples.options={sampling}", "--quiet")
    _trained(toy_songs, settings, tmp_path / "plain", "--quiet")
    assert _losses(tmp_path / "heard") == _losses(tmp_path / "plain")
    songs = {path.name: read_audio(path) for path in (tmp_path / "heard/samples").iterdir()}
    assert sorted(songs) == [f"step-{step:08d}-{number}.flac" for step in (4, 6) for number in (1, 2)]
    assert all(0.9 < song.shape[1] / rate_hz < 1.1 for song, rate_hz in songs.values())
    told = _trained(toy_songs, settings, tmp_path / "mute", "--sample-prompt", "folk", "--quiet", code=1)
    assert "needs a folder: give it as --set samples.codec=" in " ".join(told.split())


def test_an_exported_lora_changes_a_random_checkpoint_as_training_did(toy_songs, checkpoint, tmp_path):
    quick = tmp_path / "lora.yaml"
    data = {"batch_size": 2, "max_lyric_ids": 32}
    optimizer = {"lr": 0.02, "warmup_steps": 0}
    quick.write_text(json.dumps({"steps": 3, "data": data, "optimizer": optimizer, "lora": {"rank": 4, "alpha": 8}}))
    run, lora = tmp_path / "run", tmp_path / "lora"
    _trained(toy_songs, quick, run, "--checkpoint", checkpoint, "--quiet")
    asked("train", "export", run, "--out", lora)
    trainer = Trainer(TrainConfig.model_validate_json((run / "config.json").read_text()), run)
    batch = next(iter(trainer.stream))
    plain, adapted = load_transformer(checkpoint), load_transformer(checkpoint)
    load_loras(adapted, [Lora(lora, "mine")])
    objective, sigmas = Objective(), torch.full((len(batch.latents),), 0.5)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = [objective.at(m.eval(), batch, sigmas, noise).total for m in (trainer.transformer, adapted, plain)]
    assert losses[0] == pytest.approx(losses[1].item(), rel=1e-6)
    assert losses[0] != pytest.approx(losses[2].item(), rel=1e-4)


def test_frozen_weights_in_bfloat16_are_adapted(toy_songs, checkpoint, tmp_path):
    quick = tmp_path / "lora.yaml"
    overrides = {"data": {"max_lyric_ids": 32, "batch_size": 2}, "steps": 2, "accumulation": 1, "log_every": 1}
    quick.write_text(json.dumps(overrides))
    _trained(toy_songs, quick, tmp_path / "run", "--preset", "8gb", "--checkpoint", checkpoint, "--quiet")
    assert len(_losses(tmp_path / "run")) == 2


def test_an_export_says_what_it_lacks(toy_songs, settings, tmp_path):
    _trained(toy_songs, settings, tmp_path / "run", "--quiet")
    for flags, said in (
        ((), "name the codec of its latents with --codec"),
        (("--step", 5), "none of step 5, only of 4, 6"),
        (("--average",), "keeps no average"),
    ):
        told = asked("train", "export", tmp_path / "run", "--out", tmp_path / "out", *flags, code=1)
        assert said in " ".join(told.split())
    assert "is not a run" in asked("train", "export", tmp_path, "--out", tmp_path / "out", code=1)


def test_presets_are_the_papers_and_lie_over_each_other():
    quick = {"data": {"datasets": ["songs"]}}
    for name in PRESETS:
        TrainConfig.model_validate(deep_merge(PRESETS[name], quick))
    tuning = TrainConfig.model_validate(deep_merge(PRESETS["finetune"], PRESETS["24gb"], quick, {"data": {"seed": 3}}))
    assert (tuning.steps, tuning.objective.speaker_dropout, tuning.optimizer.betas) == (240_000, 1.0, (0.8, 0.9))
    assert (tuning.data.batch_size, tuning.data.seed, tuning.data.datasets) == (4, 3, ("songs",))
    pretraining = TrainConfig.model_validate(deep_merge(PRESETS["pretrain"], quick))
    assert (pretraining.steps, pretraining.objective.speaker_dropout) == (460_000, 0.5)
    late = tuning.objective
    assert late.ssl_weights_with(100_001) == {}
    assert late.ssl_weights_with(100_000) == {"m-hubert": 0.01}
    assert deep_merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    assert deep_merge({"a": {"b": 1}}, {"a": {}}) == {"a": {}}


def test_late_weights_change_the_loss_of_the_last_steps_only(toy_songs, settings, tmp_path):
    _trained(toy_songs, settings, tmp_path / "plain", "--ssl", "mert,m-hubert", "--quiet")
    late = ("--set", "objective.late_ssl_weights={m-hubert: 0}", "--set", "objective.late_steps=2")
    _trained(toy_songs, settings, tmp_path / "late", "--ssl", "mert,m-hubert", *late, "--quiet")
    plain, changed = (RunFolder(tmp_path / name).figures() for name in ("plain", "late"))
    assert [step["loss"] for step in plain[:4]] == [step["loss"] for step in changed[:4]]
    assert changed[4]["loss"] == pytest.approx(changed[4]["denoising"] + changed[4]["alignment/mert"] / 2)
    assert plain[4]["loss"] > changed[4]["loss"] + 0.1


def _reckoned(preset: str, **changes: Any):
    data = {"data": {"datasets": ["songs"], "ssl": ["mert", "m-hubert"]}}
    config = TrainConfig.model_validate(deep_merge(PRESETS["finetune"], PRESETS[preset], data, changes))
    with init_empty_weights():
        transformer = ACEStepTransformer2DModel(**model_sizes(config, WIDTHS))
        make_trainable(transformer, config)
    return estimate(config, transformer, WIDTHS, 2584, 4096)


@pytest.mark.parametrize(("preset", "least"), [("8gb", 6.6), ("12gb", 8.0)])
def test_the_released_size_is_reckoned_to_fit_the_card_of_a_preset(preset, least):
    reckoned = _reckoned(preset)
    assert 3.3e9 < reckoned.parameters < 3.4e9
    room = int(preset.removesuffix("gb")) * 2**30 - 0.7e9  # CUDA's own share
    assert least * 1e9 < reckoned.total < room


def test_gradient_checkpointing_is_reckoned_to_save_and_batches_to_cost():
    kept, saved, twice = (
        _reckoned("tiny", gradient_checkpointing=checkpointing, data={"batch_size": songs, "max_lyric_ids": 256})
        for checkpointing, songs in ((False, 2), (True, 2), (False, 4))
    )
    assert saved.activations < 0.6 * kept.activations
    assert twice.activations > 1.7 * kept.activations
    assert kept.weights == 4 * kept.parameters
    assert kept.optimizer == 2 * kept.gradients == 8 * kept.trained


def test_what_is_reckoned_is_what_a_step_takes_on_a_cpu(toy_songs):
    """By PyTorch's own count of what it allocates in a real step."""
    from torch.profiler import ProfilerActivity, profile

    config = TrainConfig.model_validate(
        {"data": {"datasets": [str(toy_songs)], "batch_size": 2}, "model": MODEL | {"num_layers": 4}}
    )
    widths = Widths(text=32, speaker=16, ssl={}, ssl_rate_hz={})
    sizes = {**config.model, "text_embedding_dim": 32, "speaker_embedding_dim": 16, "ssl_encoder_depths": (),
             "ssl_names": (), "ssl_latent_dims": ()}  # fmt: skip
    with init_empty_weights():
        empty = ACEStepTransformer2DModel(**sizes)
    reckoned = estimate(config, empty, widths, 2000, 64)
    model = ACEStepTransformer2DModel(**sizes)
    ones = torch.ones
    inputs = (
        torch.randn(2, 8, 16, 2000), ones(2, 2000, dtype=torch.bool), torch.randn(2, 256, 32),
        ones(2, 256, dtype=torch.bool), torch.randn(2, 16), ones(2, 64, dtype=torch.long),
        ones(2, 64, dtype=torch.bool), torch.rand(2),
    )  # fmt: skip
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(*inputs).sample.square().mean().backward()
    allocated, peak = 0, 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    gradients = reckoned.gradients
    assert reckoned.activations + gradients == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("one_dies", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.ray
def test_two_workers_end_alike_whether_or_not_one_dies(toy_songs, settings, tmp_path, one_dies):
    """Killed after a checkpoint, they are started again from it, and do what two processes do that nobody kills."""
    steps = 14 if one_dies else 4
    config = build_config(
        presets=[], size=None, file=settings, flags=dict.fromkeys(FLAGS) | {"DATASET": (toy_songs,), "--steps": steps},
        overrides=["save_every=2"], vocabulary=None,
    )  # fmt: skip
    killed = []

    def kill() -> None:
        deadline = time.monotonic() + 100
        while not RunFolder(tmp_path / "killed").steps() and time.monotonic() < deadline:
            time.sleep(0.005)
        workers = [child for child in psutil.Process().children(recursive=True) if "TrainWorker" in child.name()]
        killed.extend(workers[:1])
        os.kill(workers[0].pid, signal.SIGKILL)

    plain_workers.train(config, tmp_path / "whole", 2)
    killer = threading.Thread(target=kill)
    if one_dies:
        killer.start()
    with cluster(ResourceConfig(ray_address="local")):  # not one that another test has started
        train_on_ray(config, tmp_path / "killed", 2, gpu=False)
    if one_dies:
        killer.join()
        assert killed
    assert [step for step, *_ in _losses(tmp_path / "killed")] == list(range(1, steps + 1))
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")
    assert RunFolder(tmp_path / "killed").progress(steps)["stream"]["order"]["world_size"] == 2
