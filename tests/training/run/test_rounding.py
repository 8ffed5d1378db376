"""What the last bits of training rest on: threads that a run keeps, addresses that do not count, changes told."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.support.toy_dataset import VOCABULARY_SIZE
from training.data import DataConfig
from training.dit.config import TrainConfig
from training.dit.trainer import Trainer
from training.run import rounding
from training.run.optimizer import OptimizerConfig
from training.run.run_folder import RunFolder

MODEL = {
    "num_layers": 2,
    "inner_dim": 32,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "lyric_encoder_vocab_size": VOCABULARY_SIZE,
    "lyric_hidden_size": 32,
}


@pytest.fixture(scope="module")
def config(short_toy_songs: Path) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(datasets=(short_toy_songs,), batch_size=2),
        model=MODEL,
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2),
        steps=4,
        log_every=1,
        validate_every=0,
        save_every=2,
    )


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Other tests of this process compute with as many as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _figures(folder: Path) -> list[tuple[float, float]]:
    return [(step["loss"], step["gradient_norm"]) for step in RunFolder(folder).figures()]


def _said(caplog: pytest.LogCaptureFixture) -> str:
    """What the trainer says; PyTorch's checkpoints say a lot besides."""
    return "\n".join(record.getMessage() for record in caplog.records if record.name == "training.run.base_trainer")


def test_a_run_keeps_its_threads_wherever_it_goes_on(config, tmp_path):
    """However many this process would take."""
    torch.set_num_threads(1)
    Trainer(config, tmp_path / "whole").train()
    Trainer(config.model_copy(update={"steps": 2}), tmp_path / "stopped").train()
    torch.set_num_threads(2)
    Trainer(config, tmp_path / "stopped").train()
    assert torch.get_num_threads() == 1
    assert _figures(tmp_path / "stopped") == _figures(tmp_path / "whole")
    Trainer(config.model_copy(update={"threads": 2}), tmp_path / "two").train()
    assert RunFolder(tmp_path / "two").progress(4)["computed_with"]["threads"] == 2


def test_a_run_that_goes_on_under_other_conditions_says_so(config, tmp_path, caplog):
    Trainer(config.model_copy(update={"threads": 1, "steps": 2}), tmp_path).train()
    Trainer(config, tmp_path)
    assert not _said(caplog)
    Trainer(config.model_copy(update={"threads": 2}), tmp_path)
    assert f"{tmp_path} resumes in another environment than before (threads: 2, was 1)" in _said(caplog)
    caplog.clear()

    [noted] = tmp_path.glob("checkpoints/step-*/progress.json")
    progress = json.loads(noted.read_text())
    progress["computed_with"] |= {"torch": "1.0", "processor": "Z80"}
    noted.write_text(json.dumps(progress))
    Trainer(config, tmp_path)
    assert f"torch: {torch.__version__}, was 1.0" in _said(caplog)
    assert ", was Z80" in _said(caplog)


def test_a_checkpoint_of_before_conditions_were_noted_goes_on(config, tmp_path, caplog):
    Trainer(config.model_copy(update={"steps": 2}), tmp_path).train()
    [noted] = tmp_path.glob("checkpoints/step-*/progress.json")
    progress = json.loads(noted.read_text())
    del progress["computed_with"]
    noted.write_text(json.dumps(progress))
    Trainer(config, tmp_path).train()
    assert not _said(caplog)
    assert RunFolder(tmp_path).progress(4)["computed_with"] == rounding.environment("cpu")


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
def test_where_operands_lie_changes_no_bit_of_a_product():
    """With MKL_CBWR unset three of four of these products differ in their last bits, in one thread."""
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((7, 33), (64, 130), (150, 299)):
        matrix = torch.randn(rows, columns, generator=generator)
        room = torch.empty(rows * columns + 17)
        for start in range(1, 17):
            shifted = room[start : start + rows * columns].view_as(matrix).copy_(matrix)
            assert torch.equal(shifted @ shifted[0], matrix @ matrix[0]), (rows, columns, start)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_fifty_processes_on_a_busy_machine_take_the_same_steps(config, tmp_path, threads):
    """Each with other things in its memory, and more at work beside them than there are cores."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["training.dit.trainer"])
    runs = [(config.model_copy(update={"threads": threads}), tmp_path / str(number), number) for number in range(50)]
    with _busy_machine(), processes.Pool(2 * (os.cpu_count() or 1), maxtasksperchild=1) as pool:
        pool.starmap(_take_steps, runs, chunksize=1)
    assert len({tuple(_figures(folder)) for _, folder, _ in runs}) == 1


def _take_steps(config: TrainConfig, folder: Path, seed: int) -> None:
    drawn = random.Random(seed)
    clutter = [bytearray(drawn.randrange(1, 3000)) for _ in range(20_000)]
    drawn.shuffle(clutter)
    del clutter[::2]
    Trainer(config, folder).train()


@contextmanager
def _busy_machine() -> Iterator[None]:
    """Two processes a core that do nothing but compute."""
    command = [sys.executable, "-c", "while True: pass"]
    at_work = [subprocess.Popen(command) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for process in at_work:
            process.kill()
            process.wait()
