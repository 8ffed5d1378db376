"""Training runs: what a step is, exact resume, failures that leave the run as it was."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support import plain_workers
from tests.support.toy_dataset import VOCABULARY_SIZE
from training.data import DataConfig
from training.data.errors import DatasetProblem
from training.dit.config import LoraConfig, TrainConfig
from training.dit.export import trained_weights
from training.dit.flops import training_flops
from training.dit.trainer import Trainer, step_seed
from training.run.optimizer import OptimizerConfig, learning_rate
from training.run.run_folder import RunFolder, RunProblem

MODEL = {
    "num_layers": 2,
    "inner_dim": 32,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "lyric_encoder_vocab_size": VOCABULARY_SIZE,
    "lyric_hidden_size": 32,
}


def _config(dataset: Path, **changes) -> TrainConfig:
    settings = {
        "data": DataConfig(datasets=(dataset,), batch_size=2, ssl=("whisper_base",), validation_share=0.2),
        "model": MODEL,
        "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=2),
        "steps": 8,
        "log_every": 1,
        "validate_every": 0,
        "save_every": 8,  # saving takes as long as four steps
    }
    return TrainConfig(**(settings | changes))


def _figures(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(step["step"], step["loss"], step["gradient_norm"]) for step in _figures(folder)]


def _weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.transformer.named_parameters()}


def test_training_lowers_the_loss_of_songs_held_out(short_toy_songs, tmp_path):
    config = _config(short_toy_songs, optimizer=OptimizerConfig(lr=5e-3, warmup_steps=2), steps=18, validate_every=6)
    Trainer(config, tmp_path).train()
    losses = [figures["validation/loss"] for figures in _figures(tmp_path) if "validation/loss" in figures]
    assert losses[0] > losses[1] > losses[2]


@pytest.fixture(scope="module")
def whole(short_toy_songs, tmp_path_factory) -> Trainer:
    """A run that nobody has stopped, through."""
    trainer = Trainer(_config(short_toy_songs, ema=0.9, accumulation=2), tmp_path_factory.mktemp("runs") / "whole")
    trainer.train()
    return trainer


@pytest.mark.parametrize("stop", [2, 6])
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(short_toy_songs, whole, tmp_path, stop):
    config = whole.config
    Trainer(config.model_copy(update={"steps": stop}), tmp_path / "stopped").train()
    resumed = Trainer(config, tmp_path / "stopped")
    assert resumed.step == stop
    resumed.train()
    assert _losses(tmp_path / "stopped") == _losses(whole.folder.root)
    assert all(torch.equal(weight, _weights(whole)[name]) for name, weight in _weights(resumed).items())
    assert all(torch.equal(weight, whole.average.weights[name]) for name, weight in resumed.average.weights.items())
    assert resumed.stream.state_dict() == whole.stream.state_dict()


def test_a_run_that_was_killed_takes_the_same_steps(short_toy_songs, tmp_path):
    """SIGKILL after a checkpoint; the figures beyond it are taken back and computed again."""
    config = _config(short_toy_songs, steps=10, save_every=3, threads=1)
    Trainer(config, tmp_path / "whole").train()

    killed = tmp_path / "killed"
    plain_workers.train_until_killed(partial(Trainer, config, killed), 8)
    assert len(_losses(killed)) == 8

    resumed = Trainer(config, killed)
    assert resumed.step == 6
    resumed.train()
    assert _losses(killed) == _losses(tmp_path / "whole")


def test_old_checkpoints_go_and_the_newest_stay(short_toy_songs, tmp_path):
    Trainer(_config(short_toy_songs, save_every=2, keep=2), tmp_path).train()
    assert RunFolder(tmp_path).steps() == [6, 8]


def test_a_full_disk_leaves_the_checkpoint_before(short_toy_songs, tmp_path, monkeypatch):
    trainer = Trainer(_config(short_toy_songs, steps=2), tmp_path)
    trainer.train()
    before = _weights(trainer)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.run.run_folder.dcp.save", full)
    longer = Trainer(_config(short_toy_songs, steps=4), tmp_path)
    with pytest.raises(RunProblem, match="No space left"):
        longer.train()
    monkeypatch.undo()
    again = Trainer(_config(short_toy_songs, steps=4), tmp_path)
    assert again.step == 2
    assert all(torch.equal(weight, before[name]) for name, weight in _weights(again).items())


def test_a_loss_that_is_not_finite_stops_and_lists_the_tracks(short_toy_songs, tmp_path):
    trainer = Trainer(_config(short_toy_songs), tmp_path)
    with torch.no_grad():
        trainer.transformer.final_layer.linear.weight.fill_(float("nan"))
    with pytest.raises(RunProblem, match="not finite"):
        trainer.train()
    [listed] = tmp_path.glob("not_finite_*.txt")
    assert len(listed.read_text().split()) == 2


def test_a_split_that_holds_out_no_song_is_told_before_the_first_step(short_toy_songs, tmp_path):
    data = DataConfig(datasets=(short_toy_songs,), batch_size=2, ssl=("whisper_base",), validation_share=1e-9)
    with pytest.raises(DatasetProblem, match="validation"):
        Trainer(_config(short_toy_songs, data=data), tmp_path)


def test_another_config_is_refused_and_what_differs_named(short_toy_songs, tmp_path):
    Trainer(_config(short_toy_songs, steps=4), tmp_path).train()
    with pytest.raises(RunProblem, match="seed: 0 -> 1"):
        Trainer(_config(short_toy_songs, seed=1), tmp_path)


def test_validation_is_the_same_for_the_same_weights_and_by_level(short_toy_songs, tmp_path):
    Trainer(_config(short_toy_songs, steps=2, validate_every=1, optimizer=OptimizerConfig(lr=1e-12)), tmp_path).train()
    first, second = _figures(tmp_path)
    levels = [name for name in first if name.startswith("validation/sigma")]
    assert len(levels) == 5
    assert all(first[name] == pytest.approx(second[name], rel=1e-4) for name in levels)
    assert first["validation/loss"] == pytest.approx(sum(first[name] for name in levels) / 5)


def test_lora_trains_the_adapter_alone_and_resumes(short_toy_songs, tmp_path):
    config = _config(short_toy_songs, lora=LoraConfig(rank=4, alpha=4), steps=4)
    fresh = Trainer(config, tmp_path / "fresh")
    before = _weights(fresh)
    fresh.train()
    changed = {name for name, weight in _weights(fresh).items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    stored = torch.distributed.checkpoint.FileSystemReader(RunFolder(tmp_path / "fresh").path(4)).read_metadata()
    names = [name for name in stored.state_dict_metadata if name.startswith("model.")]
    assert names
    assert all("lora_" in name for name in names)
    again = Trainer(config, tmp_path / "fresh")
    assert all(torch.equal(weight, _weights(fresh)[name]) for name, weight in _weights(again).items())


def test_gradient_checkpointing_changes_no_loss(short_toy_songs, tmp_path):
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        Trainer(_config(short_toy_songs, steps=3, gradient_checkpointing=checkpointing), tmp_path / name).train()
    plain, checkpointed = (_losses(tmp_path / name) for name in ("plain", "checkpointed"))
    assert [loss for _, loss, _ in plain] == pytest.approx([loss for _, loss, _ in checkpointed], rel=1e-5)


def test_a_steps_seed_is_the_same_everywhere_and_its_own():
    assert step_seed(1, 2, 3, 4) == 15323499849503866763
    assert step_seed(-1, 0, 0, 0) == 14031750673298188677
    places = [
        (seed, step, batch, rank) for seed in range(2) for step in range(9) for batch in range(3) for rank in (0, 1)
    ]
    assert len({step_seed(*place) for place in places}) == len(places)


def test_the_learning_rate_rises_and_falls():
    config = OptimizerConfig(lr=1.0, warmup_steps=10, decay="cosine")
    rates = [learning_rate(step, 100, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0, abs=1e-6)
    assert learning_rate(50, 100, OptimizerConfig(lr=1.0, warmup_steps=10)) == 1.0


def test_parts_of_a_model_are_trained_as_copies_are(short_toy_songs, tmp_path):
    """Two workers with FSDP2, stopped and started again half-way, against two with DDP."""
    config = _config(short_toy_songs, steps=4, accumulation=2, ema=0.9, validate_every=4)
    plain_workers.train(config, tmp_path / "copies", 2)
    plain_workers.train(config.model_copy(update={"steps": 2, "sharing": "shards"}), tmp_path / "shards", 2)
    plain_workers.train(config.model_copy(update={"sharing": "shards"}), tmp_path / "shards", 2)
    copies, shards = (_figures(tmp_path / name) for name in ("copies", "shards"))
    for name in ("loss", "gradient_norm"):
        assert [step[name] for step in shards] == pytest.approx([step[name] for step in copies], rel=1e-5)
    assert shards[-1]["validation/loss"] == pytest.approx(copies[-1]["validation/loss"], rel=1e-5)
    for part in ("model", "average"):
        both = [trained_weights(RunFolder(tmp_path / name), 4, part) for name in ("copies", "shards")]
        assert both[0].keys() == both[1].keys()
        assert all(torch.allclose(both[0][name], both[1][name], atol=1e-5) for name in both[0])


@torch.no_grad()
def test_the_arithmetic_of_a_step_is_what_pytorch_counts(short_toy_songs, tmp_path):
    """On the way there, but for what is said to be left out."""
    trainer = Trainer(_config(short_toy_songs), tmp_path)
    batch = next(iter(trainer.stream))
    masks = ("frame_mask", "text_mask", "lyric_mask")
    full = replace(batch, ssl={}, **{name: torch.ones_like(getattr(batch, name)) for name in masks})
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.objective(trainer.model, full, torch.Generator().manual_seed(0))
    model = "ACEStepTransformer2DModel"
    aside = ("lyric_encoder", "lyric_embs", "lyric_proj", "genre_embedder", "speaker_embedder")
    left_out = sum(sum(counter.flop_counts[f"{model}.{part}"].values()) for part in aside)
    assert training_flops(trainer.transformer.config, full) == 3 * (counter.get_total_flops() - left_out)
    assert training_flops(trainer.transformer.config, batch) < training_flops(trainer.transformer.config, full)
