"""Training in processes of its own without Ray: workers that train together, and runs that are killed.

The processes are forked from one that has imported what trains, so that each of them starts at once.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import distributed

from training.autoencoder import trainer as _autoencoder  # noqa: F401 - so that its runs too start at once
from training.dit.config import TrainConfig
from training.dit.trainer import Trainer
from training.speaker import trainer as _speaker  # noqa: F401


class Run(Protocol):
    """A trainer."""

    def train(self) -> None: ...


def train(config: TrainConfig, folder: Path, workers: int) -> None:
    """Run `workers` processes to the end, over Gloo."""
    _rendezvous(folder).unlink(missing_ok=True)
    started = [_started(_work, config, folder, rank, workers) for rank in range(workers)]
    for process in started:
        process.join()
        assert process.exitcode == 0


def train_until_killed(begin: Callable[..., Run], step: int) -> None:
    """Take steps in another process, which dies by SIGKILL after `step`.

    Args:
        begin: makes the trainer; takes `report`, and has to be fit for pickling.
        step: the last one that is reported.
    """
    process = _started(_die_at, begin, step)
    process.join(timeout=840)
    assert process.exitcode == -signal.SIGKILL


def _started(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    process = processes.Process(target=work, args=arguments)
    process.start()
    return process


def _work(config: TrainConfig, folder: Path, rank: int, workers: int) -> None:
    torch.set_num_threads(1)  # as Ray's workers on a CPU each: another number rounds otherwise
    distributed.init_process_group("gloo", init_method=f"file://{_rendezvous(folder)}", rank=rank, world_size=workers)
    Trainer(config, folder).train()
    distributed.destroy_process_group()


def _die_at(begin: Callable[..., Run], step: int) -> None:
    def report(figures: Mapping[str, float]) -> None:
        if figures["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(2)  # a run keeps its own number, whatever the process would take
    begin(report=report).train()


def _rendezvous(folder: Path) -> Path:
    return folder.with_suffix(".rendezvous")
