"""What all runs share while they run: a device, and a stop that loses nothing."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.errors import UsageProblem
from training.run.base_trainer import BaseTrainer


def find_device(asked: str) -> str:
    """The device that `auto`, `cpu` or `cuda` stands for.

    Raises:
        UsageProblem: it is not there.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked != "cpu" and not torch.cuda.is_available():
        raise UsageProblem(f"--device {asked}: there is no GPU that PyTorch can use here")
    return asked


@contextmanager
def stopped_gently(loop: BaseTrainer) -> Iterator[None]:
    """The first Ctrl-C, or a scheduler's SIGTERM, lets the step end and saves; the second Ctrl-C does not wait."""
    plain = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGINT, plain)
        loop.stop()

    terminate = signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, plain)
        signal.signal(signal.SIGTERM, terminate)
