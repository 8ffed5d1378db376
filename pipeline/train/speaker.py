"""Runs of `songmill train speaker`: preparation of voices, training and the model card."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import DataProblem, UsageProblem
from pipeline.train.progress import shown
from pipeline.train.running import find_device, stopped_gently
from pipeline.train.speaker_card import write_card
from pipeline.train.voices import prepare_voices, sung_songs
from stages.nets.omni_scale import SpeakerEncoder
from training.run.provenance import note_tracks
from training.run.run_folder import RunFolder, RunProblem
from training.run.tensorboard import TensorBoard
from training.speaker.config import SpeakerConfig
from training.speaker.segment_store import SegmentStore
from training.speaker.trainer import SEGMENTS, SpeakerTrainer, frame_hz
from training.speaker.voices import Voices


@dataclass(frozen=True)
class SpeakerRun:
    """A run that can start.

    Attributes:
        config: settings of the run.
        folder: the run's folder.
        voices: voices to train on.
        device: device to compute on.
    """

    config: SpeakerConfig
    folder: RunFolder
    voices: Voices
    device: str

    @property
    def step(self) -> int:
        """The step of the last checkpoint; 0 before the first."""
        return max(self.folder.steps(), default=0)

    @property
    def failed(self) -> dict[str, str]:
        """Songs that could not be prepared: track id -> why."""
        return SegmentStore(self.folder.root / SEGMENTS).failed()


def prepare(
    config: SpeakerConfig, out: Path, *, device: str = "auto", workers: int = 1, progress: bool = True
) -> SpeakerRun:
    """Check a run's folder, and prepare the voices that it lacks.

    A run with a checkpoint keeps the voices it has, and does not need the dataset any more.

    Args:
        config: settings of the run.
        out: the run's folder.
        device: `auto`, `cpu` or `cuda`.
        workers: processes that separate songs.
        progress: show progress on stderr.

    Raises:
        DataProblem: there are fewer than two singers, or the folder holds a run with other settings.
        UsageProblem: an unavailable device, an unknown column, or invalid sizes of the encoder.
    """
    found = find_device(device)
    encoder = _encoder(config)
    with config_errors_reported():
        folder = RunFolder(out)
        folder.prepare(config.model_dump(mode="json"))
        segments = SegmentStore(out / SEGMENTS)
        if not folder.steps():
            songs = sung_songs(config.data)
            if len({song.label for song in songs}) < 2:
                raise DataProblem(
                    f"all {len(songs)} songs with vocals have the same {config.data.label}, {songs[0].label!r}: at "
                    "least two singers are needed. Name the column that tells singers apart with --label"
                )
            prepare_voices(segments, songs, encoder, workers=workers, progress=progress)
            _require_voices(segments)
        return SpeakerRun(config, folder, Voices(segments, config.data, frame_hz(encoder)), found)


def _require_voices(segments: SegmentStore) -> None:
    """If failed songs leave too few singers, say why they failed."""
    failed, heard = segments.failed(), {song.label for song in segments.songs() if song.segments}
    if failed and len(heard) < 2:
        track, why = next(iter(failed.items()))
        raise DataProblem(
            f"{len(heard)} singer to learn from, at least two are needed: {len(failed)} songs could not be separated, "
            f"such as {track}: {why}"
        )


def train(run: SpeakerRun, *, progress: bool = True) -> bool:
    """Train to the end and write the model card. Returns whether all steps were taken, or the user stopped the run.

    Raises:
        DataProblem: the run cannot continue; the message says what to do.
        KeyboardInterrupt: stopped in the middle of a step.
    """
    steps = run.config.steps
    if run.step < steps:
        note_tracks(run.folder.root, (song.track_id for song in SegmentStore(run.folder.root / SEGMENTS).songs()))
        with (
            config_errors_reported(),
            shown(run.folder.metrics, run.step, steps, enabled=progress),
            closing(TensorBoard(run.folder)) as board,
        ):
            trainer = SpeakerTrainer(run.config, run.folder.root, device=run.device, report=board)
            with stopped_gently(trainer):
                trainer.train()
    write_card(run.folder, run.config, run.voices, run.failed)
    return run.step >= steps


@contextmanager
def config_errors_reported() -> Iterator[None]:
    """Turn errors that the user can fix into the pipeline's own."""
    try:
        yield
    except (RunProblem, OSError) as problem:
        raise DataProblem(str(problem)) from problem
    except (torch.OutOfMemoryError, MemoryError) as problem:
        raise DataProblem(
            "out of memory: lower --singers, --segments or --set data.crop_s=, or take a smaller --size, in another "
            "--out"
        ) from problem


def _encoder(config: SpeakerConfig) -> SpeakerEncoder:
    try:
        return SpeakerEncoder(**config.model)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as problem:
        raise UsageProblem(f"--set model: {problem}") from problem
