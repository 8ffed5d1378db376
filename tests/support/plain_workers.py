"""Workers that train together without Ray: what its workers are compared with."""

import multiprocessing
from pathlib import Path

import torch
from torch import distributed

from training.dit.config import TrainConfig
from training.dit.trainer import Trainer


def train(config: TrainConfig, folder: Path, workers: int) -> None:
    """Run `workers` processes to the end, over Gloo."""
    _rendezvous(folder).unlink(missing_ok=True)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    started = [processes.Process(target=_work, args=(config, folder, rank, workers)) for rank in range(workers)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0


def _work(config: TrainConfig, folder: Path, rank: int, workers: int) -> None:
    torch.set_num_threads(1)  # as Ray's workers on a CPU each: another number rounds otherwise
    distributed.init_process_group("gloo", init_method=f"file://{_rendezvous(folder)}", rank=rank, world_size=workers)
    Trainer(config, folder).train()
    distributed.destroy_process_group()


def _rendezvous(folder: Path) -> Path:
    return folder.with_suffix(".rendezvous")
