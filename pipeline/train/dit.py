"""Runs of `songmill train dit`: memory estimate, training and the model card."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights

from pipeline.errors import DataProblem, UsageProblem
from pipeline.train.card import write_card
from pipeline.train.progress import shown
from pipeline.train.running import find_device, stopped_gently
from training.checkpoints.released_layout import CheckpointProblem, empty_transformer
from training.data import DatasetProblem, FeatureMaker, SongIndex, open_songs
from training.dit.config import TrainConfig
from training.dit.memory_estimate import MemoryEstimate, estimate
from training.dit.presets import next_smaller
from training.dit.trainer import Trainer, make_trainable, model_sizes
from training.model import ACEStepTransformer2DModel
from training.run.provenance import note_tracks, tracks_of
from training.run.run_folder import RunFolder, RunProblem
from training.run.tensorboard import TensorBoard


@dataclass(frozen=True)
class Run:
    """A run that can start.

    Attributes:
        config: settings of the run.
        folder: the run's folder.
        songs: songs to train on.
        device: `cpu`, `cuda` or one device such as `cuda:1`.
        workers: number of training processes.
        readers: processes per worker that read songs ahead.
    """

    config: TrainConfig
    folder: RunFolder
    songs: SongIndex
    device: str
    workers: int
    readers: int

    @property
    def step(self) -> int:
        """The step of the last checkpoint; 0 before the first."""
        return max(self.folder.steps(), default=0)


def prepare(
    config: TrainConfig,
    out: Path,
    *,
    from_audio: bool = False,
    codec: Path | None = None,
    device: str = "auto",
    workers: int = 1,
    readers: int | None = None,
) -> Run:
    """Check a run's folder, index its songs and choose a device.

    Args:
        config: settings of the run.
        out: the run's folder.
        from_audio: compute features for every batch; see `pipeline.train.audio_rows`.
        codec: codec for latents from audio; by default that of the datasets.
        device: `auto`, or a PyTorch device.
        workers: number of training processes.
        readers: processes per worker that read songs ahead; by default 4 on a GPU, else none.

    Raises:
        DataProblem: the songs cannot be trained on, or the folder holds a run with other settings.
        UsageProblem: the device is not available, or no codec is known.
    """
    if codec and not from_audio:
        raise UsageProblem("--codec is for latents from audio: give --from-audio too, or leave it out")
    found = find_device(device)
    with config_errors_reported():
        folder = RunFolder(out)
        folder.prepare(config.model_dump(mode="json"))
        songs = open_songs(config.data, maker=_maker(config, codec) if from_audio else None)
    return Run(config, folder, songs, found, workers, readers if readers is not None else 4 * (found != "cpu"))


def _maker(config: TrainConfig, codec: Path | None) -> FeatureMaker:
    # Imported here: the stages take a second to import, and runs on stored features do not need them.
    from pipeline.models.store import ModelStore
    from pipeline.train.audio_rows import features_from_audio

    return features_from_audio(config.data, codec, ModelStore())


def estimate_memory(run: Run) -> MemoryEstimate:
    """Estimate the memory of the largest batch.

    Raises:
        DataProblem: the checkpoint to start from cannot be read.
    """
    with config_errors_reported(), init_empty_weights():
        if run.config.checkpoint:
            transformer = empty_transformer(run.config.checkpoint)
        else:
            transformer = ACEStepTransformer2DModel(**model_sizes(run.config, run.songs.widths))
        make_trainable(transformer, run.config)
    frames, lyric_ids = int(run.songs.column("frames").max()), run.songs.longest_lyrics()
    return estimate(run.config, transformer, run.songs.widths, frames, lyric_ids)


def train(run: Run, *, presets: list[str], memory: MemoryEstimate | None, progress: bool = True) -> bool:
    """Train to the end and write the model card. Returns whether all steps were taken, or the user stopped the run.

    Raises:
        DataProblem: the run cannot continue; the message says what to do.
        KeyboardInterrupt: stopped in the middle of a step, or on several workers.
    """
    folder, steps = run.folder, run.config.steps
    with config_errors_reported(presets), shown(folder.metrics, run.step, steps, enabled=progress):
        if run.step < steps:
            note_tracks(folder.root, _tracks(run))
            if run.workers > 1:
                _train_together(run)
            else:
                _train_here(run)
    write_card(folder, run.config, run.songs, run.workers, memory)
    return run.step >= steps


def _tracks(run: Run) -> set[str]:
    """Track ids that the run trains on, and those that its starting checkpoint was trained on."""
    songs = run.songs.part("train", run.config.data.validation_share)
    before = tracks_of(run.config.checkpoint) if run.config.checkpoint else set()
    return {*songs.table["track_id"].to_pylist(), *before}


def _train_together(run: Run) -> None:
    # Imported here: Ray takes seconds to import, and a single process does not need it.
    from pipeline.execution.cluster import cluster
    from schemas.config import ResourceConfig
    from training.dit.distributed import train_on_ray

    with cluster(ResourceConfig()):
        train_on_ray(
            run.config,
            run.folder.root,
            run.workers,
            gpu=run.device != "cpu",
            readers=run.readers,
            maker=run.songs.maker,
        )


def _train_here(run: Run) -> None:
    with closing(TensorBoard(run.folder)) as board:
        trainer = Trainer(
            run.config,
            run.folder.root,
            device=run.device,
            workers=run.readers,
            maker=run.songs.maker,
            report=board,
        )
        with stopped_gently(trainer):
            trainer.train()


@contextmanager
def config_errors_reported(presets: list[str] | None = None) -> Iterator[None]:
    """Turn errors that the user can fix into the pipeline's own."""
    try:
        yield
    except (DatasetProblem, RunProblem, CheckpointProblem) as problem:
        raise DataProblem(str(problem)) from problem
    except (torch.OutOfMemoryError, MemoryError) as problem:
        raise DataProblem(out_of_memory(presets or [])) from problem
    except RuntimeError as problem:
        if "can't allocate memory" not in str(problem):  # PyTorch's message for main memory
            raise
        raise DataProblem(out_of_memory(presets or [])) from problem


def out_of_memory(presets: list[str]) -> str:
    """The error message for lack of memory, with the next smaller preset."""
    smaller = next_smaller(presets)
    if smaller is None:
        return (
            "out of memory, with the smallest preset: lower --set data.max_frames_per_song=, or "
            "--set data.max_lyric_ids= in another --out"
        )
    return f"out of memory: take --preset {','.join(smaller)}, or a smaller --batch-size, in another --out"
