"""One way to train: a number of timed steps in a process of its own."""

import resource
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel

from pipeline.models.store import ModelStore
from pipeline.train.audio_rows import features_from_audio
from training.data import DataConfig
from training.dit.config import TrainConfig
from training.dit.presets import SIZES
from training.dit.trainer import Trainer


class Case(BaseModel, frozen=True):
    """A way to train.

    Attributes:
        dataset: a folder that `songmill curate` wrote.
        name: its name in the report.
        codec: folder of the codec that computes latents from audio; None to read stored features.
        batch_size: songs per step.
        steps: number of timed steps, after one that is not timed.
    """

    dataset: Path
    name: str
    codec: Path | None
    batch_size: int
    steps: int


class Measurement(BaseModel, frozen=True):
    """The results of one case.

    Attributes:
        case: what was measured.
        seconds: time of each timed step.
        waits: share of each timed step spent waiting for its batch.
        losses: losses of all steps.
        songs: number of songs trained on.
        parameters: number of parameters of the transformer.
        peak_bytes: peak main memory of the process.
    """

    case: Case
    seconds: tuple[float, ...]
    waits: tuple[float, ...]
    losses: tuple[float, ...]
    songs: int
    parameters: int
    peak_bytes: int

    @property
    def step_s(self) -> float:
        """Seconds of a typical step."""
        return median(self.seconds)

    @property
    def wait(self) -> float:
        """Share of all timed steps that was spent waiting for batches."""
        waited = sum(share * seconds for share, seconds in zip(self.waits, self.seconds, strict=True))
        return waited / sum(self.seconds)


def measure(case: Case) -> Measurement:
    """Train a tiny transformer on one thread, in-process."""
    torch.set_num_threads(1)
    data = DataConfig(datasets=(case.dataset,), batch_size=case.batch_size, ssl=("whisper_base",))
    config = TrainConfig(
        data=data, model=dict(SIZES["tiny"]), steps=case.steps + 1, log_every=1, validate_every=0, save_every=10**9
    )
    maker = features_from_audio(data, case.codec, ModelStore()) if case.codec else None
    figures: list[dict[str, Any]] = []
    ends: list[float] = []

    def note(step: Any) -> None:
        figures.append(dict(step))
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder), maker=maker, report=note)
        trainer.train()
    return Measurement(
        case=case,
        seconds=tuple(end - start for start, end in pairwise(ends)),
        waits=tuple(step["data_wait_share"] for step in figures[1:]),
        losses=tuple(step["loss"] for step in figures),
        songs=len(trainer.songs),
        parameters=sum(weight.numel() for weight in trainer.transformer.parameters()),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
