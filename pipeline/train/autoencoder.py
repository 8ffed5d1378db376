"""Runs of `songmill train autoencoder`: data, training and the model card."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import DataProblem, UsageProblem
from pipeline.train.audio import DatasetAudio
from pipeline.train.autoencoder_card import write_card
from pipeline.train.progress import shown
from pipeline.train.running import find_device, stopped_gently
from training.autoencoder.config import AutoencoderTrainConfig
from training.autoencoder.model import NoSuchModel
from training.autoencoder.trainer import AutoencoderTrainer
from training.checkpoints.released_layout import CheckpointProblem
from training.data.recordings import UnreadableAudio
from training.run.provenance import note_tracks
from training.run.run_folder import RunFolder, RunProblem
from training.run.tensorboard import TensorBoard


@dataclass(frozen=True)
class AutoencoderRun:
    """A run that can start.

    Attributes:
        config: settings of the run.
        folder: the run's folder.
        audio: recordings to train on.
        device: device to compute on.
    """

    config: AutoencoderTrainConfig
    folder: RunFolder
    audio: DatasetAudio
    device: str

    @property
    def step(self) -> int:
        """The step of the last checkpoint; 0 before the first."""
        return max(self.folder.steps(), default=0)


def prepare(config: AutoencoderTrainConfig, out: Path, *, device: str = "auto") -> AutoencoderRun:
    """Check a run's folder, list its songs and choose a device.

    Raises:
        DataProblem: there are no songs, or the folder holds a run with other settings.
        UsageProblem: the device is not available.
    """
    found = find_device(device)
    with config_errors_reported():
        folder = RunFolder(out)
        folder.prepare(config.model_dump(mode="json"))
        return AutoencoderRun(config, folder, DatasetAudio(config.data.datasets, config.data.where), found)


def train(run: AutoencoderRun, *, progress: bool = True) -> bool:
    """Train to the end and write the model card. Returns whether all steps were taken, or the user stopped the run.

    Raises:
        DataProblem: the run cannot continue; the message says what to do.
        KeyboardInterrupt: stopped in the middle of a step.
    """
    steps = run.config.steps
    if run.step < steps:
        note_tracks(run.folder.root, run.audio.table["track_id"].to_pylist())
        with (
            config_errors_reported(),
            shown(run.folder.metrics, run.step, steps, enabled=progress),
            closing(TensorBoard(run.folder)) as board,
        ):
            trainer = AutoencoderTrainer(
                run.config, run.audio, run.folder.root, device=run.device, report=board, show=board.pictures
            )
            with stopped_gently(trainer):
                trainer.train()
    write_card(run.folder, run.config, run.audio)
    return run.step >= steps


@contextmanager
def config_errors_reported() -> Iterator[None]:
    """Turn errors that the user can fix into the pipeline's own."""
    try:
        yield
    except (RunProblem, UnreadableAudio, CheckpointProblem) as problem:
        raise DataProblem(str(problem)) from problem
    except NoSuchModel as problem:
        raise UsageProblem(f"--set model: {problem}") from problem
    except (torch.OutOfMemoryError, MemoryError) as problem:
        raise DataProblem(
            "out of memory: lower the phase's batch_size or excerpt_s, such as --set middle.batch_size=1, in another "
            "--out"
        ) from problem
