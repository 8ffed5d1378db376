"""Prepares the voices of a speaker run: separates every song with vocals, and stores sung segments as log-mels."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.progress import track as tracked

from pipeline.dataset.stats import connect
from pipeline.errors import DataProblem, UsageProblem
from pipeline.models.store import ModelStore
from pipeline.planning.plan import Plan
from pipeline.train.audio import DatasetAudio
from schemas.dataset import Layout
from stages import pcm
from stages.base import Stage, Weights
from stages.nets.omni_scale import SpeakerEncoder
from stages.registry import stage_class
from stages.signal.voice_activity import voiced_segments
from training.speaker.config import VoicesConfig
from training.speaker.segment_store import SegmentStore, Voice

_VOCALS, _STEM = "vocals", "vocal_stem"
_FRONT_END = ("sampling_rate", "n_fft", "win_length", "hop_length", "f_min", "f_max", "n_mels")
_LINE_INTERVAL_S = 10.0


@dataclass(frozen=True)
class SungSong:
    """A kept song with vocals.

    Attributes:
        dataset: the dataset it is from.
        track_id: the song's id.
        label: name of the singer; the track id if unknown.
        license: the song's licence.
    """

    dataset: str
    track_id: str
    label: str
    license: str


def sung_songs(config: VoicesConfig) -> list[SungSong]:
    """The songs with vocals of all datasets, each track once.

    Raises:
        UsageProblem: the label column is unknown, or the condition is not valid SQL.
        NoDataset: a place holds no dataset.
        DataProblem: a dataset lacks the column `vocals`, or no song has vocals.
    """
    songs: dict[str, SungSong] = {}
    for dataset in config.datasets:
        for song in _sung(dataset, config.where, config.label):
            songs.setdefault(song.track_id, song)
    if not songs:
        condition = f" for which {config.where!r} holds" if config.where else ""
        raise DataProblem(f"{', '.join(config.datasets)}: no song{condition} has vocals")
    return sorted(songs.values(), key=lambda song: song.track_id)


def prepare_voices(
    segments: SegmentStore,
    songs: Sequence[SungSong],
    encoder: SpeakerEncoder,
    *,
    workers: int = 1,
    progress: bool = True,
) -> None:
    """Prepare the segments of all songs that have none yet, and store the list of songs and of failures.

    Args:
        segments: where to store them.
        songs: songs to prepare.
        encoder: encoder whose front end computes the log-mel bands.
        workers: processes that separate songs; with 1, this process does.
        progress: show progress on stderr.

    Raises:
        DataProblem: a model is missing, the stage cannot start, or a process was killed.
    """
    store = ModelStore()
    datasets = sorted({song.dataset for song in songs})
    separations = {dataset: _Separation.planned(dataset, encoder, store) for dataset in datasets}
    recipes = {dataset: separation.recipe for dataset, separation in separations.items()}
    due = [song for song in songs if not _stored(segments, song, recipes)]
    jobs = [_Job(song.track_id, separations[song.dataset]) for song in due]
    made = _with_progress(_separate_all(jobs, segments.folder, min(workers, len(jobs))), len(jobs), progress)
    failed = {track_id: problem for track_id, problem in made if problem}
    segments.choose([song for song in (_stored(segments, song, recipes) for song in songs) if song], failed)


def _stored(segments: SegmentStore, song: SungSong, recipes: Mapping[str, str]) -> Voice | None:
    return segments.find(song.track_id, recipes[song.dataset], label=song.label, license=song.license)


def _sung(dataset: str, where: str | None, label: str) -> list[SungSong]:
    plan = _plan(dataset)
    if _VOCALS not in plan.columns:
        raise DataProblem(f"{dataset} does not say who sings: curate it with the stage vocals")
    column = ".".join(f'"{name}"' for name in label.replace('"', '""').split("."))
    with connect(Layout.at(dataset)) as connection:
        rows = connection.sql("from tracks")
        if not rows.limit(1).fetchall():
            raise DataProblem(f"{dataset} has no kept songs: `songmill inspect {dataset}` says why")
        try:
            named = rows.project(f"*, nullif(trim(cast({column} as varchar)), '') as _singer")
        except duckdb.Error as problem:
            raise UsageProblem(f"--label {label}: the shards have {', '.join(rows.columns)}") from problem
        try:
            sung = (
                named.filter(where or "true")
                .filter("vocals.has_vocals")
                .project("track_id, coalesce(_singer, track_id), coalesce(license, 'unknown')")
            )
            return [SungSong(dataset, *row) for row in sung.fetchall()]
        except duckdb.Error as problem:
            what = str(problem).partition("\n\nLINE")[0]
            if not where:
                raise DataProblem(f"{dataset}: {what}") from problem
            raise UsageProblem(f"--where {where!r}: {what}") from problem


def _plan(dataset: str) -> Plan:
    layout = Layout.at(dataset)
    layout.require()
    return Plan.model_validate_json(layout.store.get(layout.plan))


@dataclass(frozen=True)
class _Separation:
    """How to separate a dataset's songs; picklable, so that worker processes can build the stage.

    Attributes:
        dataset: the dataset whose stage `vocals` this is.
        engine: engine of the stage.
        params: parameters of the stage.
        weights: weights of the stage.
        front_end: the encoder's arguments that its log-mel bands depend on.
    """

    dataset: str
    engine: str
    params: Mapping[str, Any]
    weights: Mapping[str, Weights]
    front_end: Mapping[str, Any]

    @classmethod
    def planned(cls, dataset: str, encoder: SpeakerEncoder, store: ModelStore) -> "_Separation":
        """As in the dataset's plan, with the models of the current store."""
        plan = _plan(dataset).columns[_VOCALS]
        kind = stage_class(_VOCALS, plan.engine)
        stage = kind(kind.Params.model_validate(plan.params))
        if set(stage.reads) != {"pcm"} or _STEM not in stage.working:
            raise UsageProblem(f"{dataset}: its stage vocals, {plan.engine}, does not make {_STEM} of pcm alone")
        weights = {name: store.resolve(name) for name in stage.models}
        return cls(dataset, plan.engine, plan.params, weights, {name: encoder.config[name] for name in _FRONT_END})

    @property
    def recipe(self) -> str:
        """Everything besides the song that the segments depend on, as JSON."""
        recipe = {
            "engine": self.engine,
            "revision": stage_class(_VOCALS, self.engine).revision,
            "params": self.params,
            "weights": {name: weights.digest for name, weights in self.weights.items()},
            "front_end": self.front_end,
        }
        return json.dumps(recipe, sort_keys=True, default=str)

    def build(self) -> Stage:
        """Build the stage and load its weights."""
        kind = stage_class(_VOCALS, self.engine)
        stage = kind(kind.Params.model_validate(self.params))
        try:
            stage.setup(self.weights)
        except Exception as error:
            raise DataProblem(f"stage {_VOCALS!r} cannot start: {error}") from error
        return stage


@dataclass(frozen=True)
class _Job:
    track_id: str
    separation: _Separation


class _SongSeparator:
    """Separates songs of one dataset into segments."""

    def __init__(self, separation: _Separation) -> None:
        self._audio = DatasetAudio([separation.dataset], cache_bytes=0)
        self._places = {recording.track_id: place for place, recording in enumerate(self._audio.recordings)}
        self._stage = separation.build()
        # A small encoder with the same front end.
        self._encoder = SpeakerEncoder(**separation.front_end, channels=(16, 16, 16), blocks=(1, 1), parts=1)

    @torch.inference_mode()
    def __call__(self, track_id: str) -> list[np.ndarray]:
        """Log-mel bands of the sung segments, [n_mels, frames] each."""
        heard = self._audio.read(self._places[track_id])
        batch = pa.table({"pcm": pa.array([heard.T.astype("<i2").tobytes()], pcm.PCM)})
        stem = self._stage.run(batch)[_STEM][0]
        voice = voiced_segments(stem, self._encoder.config["sampling_rate"])
        return [self._encoder.log_mel(torch.from_numpy(segment)[None])[0].numpy() for segment in voice]


class _SeparationWorker:
    """Processes jobs one at a time; models are loaded once per dataset."""

    def __init__(self, folder: Path) -> None:
        self._segments = SegmentStore(folder)
        self._separators: dict[str, _SongSeparator] = {}

    def __call__(self, job: _Job) -> tuple[str, str | None]:
        """Prepare the segments of a song; returns its track id, and the error if it failed."""
        dataset = job.separation.dataset
        if dataset not in self._separators:
            self._separators[dataset] = _SongSeparator(job.separation)
        try:
            voice = self._separators[dataset](job.track_id)
        except Exception as error:  # any failure costs only this song
            return job.track_id, str(error) or repr(error)
        self._segments.add(job.track_id, job.separation.recipe, voice)
        return job.track_id, None


def _separate_all(jobs: Sequence[_Job], folder: Path, workers: int) -> Iterator[tuple[str, str | None]]:
    if workers <= 1:
        yield from map(_SeparationWorker(folder), jobs)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (folder,))
    try:
        for done in as_completed([pool.submit(_work, job) for job in jobs]):
            yield done.result()
    except BrokenProcessPool as error:
        raise DataProblem(
            "a process that separates vocals was killed, perhaps for memory: try fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: _SeparationWorker  # of a worker process


def _start_worker(folder: Path) -> None:
    global _worker
    torch.set_num_threads(1)
    _worker = _SeparationWorker(folder)


def _work(job: _Job) -> tuple[str, str | None]:
    return _worker(job)


def _with_progress(
    made: Iterator[tuple[str, str | None]], total: int, enabled: bool
) -> Iterator[tuple[str, str | None]]:
    """Pass results on, with a live bar on a terminal and otherwise a line every few seconds."""
    console = Console(stderr=True)
    if not enabled or not total:
        yield from made
    elif console.is_terminal:
        yield from tracked(made, "separating vocals", total, console=console)
    else:
        last_line = time.monotonic()
        for done, song in enumerate(made, start=1):
            if done == total or time.monotonic() - last_line >= _LINE_INTERVAL_S:
                console.print(f"separating vocals: {done}/{total} songs", highlight=False)
                last_line = time.monotonic()
            yield song
