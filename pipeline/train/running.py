"""What all training commands share: choosing a device, and a graceful stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.console.interrupts import handled_by
from pipeline.errors import UsageProblem
from training.run.base_trainer import BaseTrainer


def find_device(asked: str) -> str:
    """The device to use for `auto`, `cpu` or `cuda`.

    Raises:
        UsageProblem: it is not available.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked != "cpu" and not torch.cuda.is_available():
        raise UsageProblem(f"--device {asked}: there is no GPU that PyTorch can use here")
    return asked


@contextmanager
def stopped_gently(trainer: BaseTrainer) -> Iterator[None]:
    """On the first Ctrl-C or a SIGTERM, finish the step and save a checkpoint; on a second Ctrl-C, stop at once."""
    plain = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGINT, plain)
        trainer.stop()

    with handled_by(stop, signal.SIGINT, signal.SIGTERM):
        yield
