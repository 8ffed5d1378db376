"""Features computed from audio for every batch, by the same stages that would store them.

For training without stored features, and as a baseline to compare them with: nothing is cached between batches. A song
is encoded as a whole, as for stored features, even if the batch uses only a crop of it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.curation.feature_dag import build_feature_dag
from pipeline.errors import DataProblem, UsageProblem
from pipeline.ingest.identity import track_id
from pipeline.models.store import ModelStore
from pipeline.planning.dag import Node
from pipeline.planning.plan import Plan
from schemas.commits import committed_files
from schemas.dataset import Layout
from schemas.shards import shards_of
from stages import pcm
from stages.base import Stage
from stages.nets.codec.codec import CODEC_HZ, latent_length
from stages.text_embedding import texts
from training.data.config import DataConfig
from training.data.dataset_file import DatasetFile
from training.data.errors import CorruptShard
from training.data.feature_summary import FeatureSummary
from training.data.rows import RowReader
from training.data.song_index import Row, SongIndex
from training.data.units import Unit

_LATENTS, _TEXT, _SSL = "latents", "text_embedding", "ssl"
_SILENCE = pcm.encode(np.zeros((pcm.CHANNELS, pcm.RATE_HZ), np.float32))
_CAPTION = {"simplified": "silence"}


def features_from_audio(config: DataConfig, codec: Path | None, store: ModelStore) -> "AudioFeatures":
    """A `FeatureMaker` for a run, configured as its datasets' plans say.

    Args:
        config: datasets and encoders.
        codec: folder that holds `music_dcae_f8c8/`; by default the one that the datasets' latents were computed with.
        store: the model store.

    Raises:
        UsageProblem: no codec is known, a stage does not fit, or an encoder is unknown.
        NoDataset: a place holds no dataset.
        DataProblem: its stored features were computed differently, or two datasets disagree.
    """
    names = [_LATENTS, _TEXT, *([_SSL] if config.ssl else [])]
    first, *others = (_nodes(dataset, names, codec, store) for dataset in config.datasets)
    for dataset, nodes in zip(config.datasets[1:], others, strict=True):
        for column, node in nodes.items():
            if node.fingerprint != first[column].fingerprint:
                raise DataProblem(f"{config.datasets[0]} and {dataset} make {column} in different ways")
    return AudioFeatures(tuple(first.values()), names, config.ssl)


def _nodes(dataset: str, names: Sequence[str], codec: Path | None, store: ModelStore) -> dict[str, Node]:
    """Column -> the stage that computes it, in execution order."""
    layout = Layout.at(dataset)
    layout.require()
    shards = shards_of(layout, committed_files(layout))
    if not shards:
        raise DataProblem(f"{dataset} has no shards: give a folder that `songmill curate` wrote")
    plan = Plan.model_validate_json(layout.store.get(layout.plan))
    if codec is None and _LATENTS not in plan.columns:
        raise UsageProblem(
            f"--codec is missing: {dataset} has no latents to take it from; give the folder that holds music_dcae_f8c8/"
        )
    overrides = [f"latents.codec={codec.resolve()}"] if codec else []
    made = build_feature_dag(dataset, plan, _schema(layout, shards), names, overrides, store, as_planned=True)
    for node in made.dag.nodes:
        stored = plan.columns.get(node.column)
        if stored and node.fingerprint != stored.fingerprint:
            other, remedy = "model or revision of its stage", ""
            if node.name == _LATENTS:
                other, remedy = "codec", f"give the one they were made with as --codec, {stored.params['codec']}, or "
            raise DataProblem(
                f"{dataset} has {node.column} of another {other}: {remedy}compute them again with "
                f"`songmill curate --add {node.name} {dataset}`"
            )
    # Reader processes have no GPU: it belongs to the trainer.
    return {node.column: replace(node, gpus=0.0) for node in made.dag.nodes}


def _schema(layout: Layout, shards: Iterable[str]) -> pa.Schema:
    """Schema of the first readable shard; the stream handles unreadable ones."""
    for shard in shards:
        with suppress(CorruptShard):
            return DatasetFile(layout.store, shard).schema()
    raise DataProblem(
        f"{layout.url}: none of its shards can be read; `songmill verify {layout.url}` says what is wrong"
    )


class AudioFeatures:
    """Computes features from the audio at `uri`: a `training.data.FeatureMaker`.

    Attributes:
        reads: columns of the shards that this reads.
    """

    def __init__(self, nodes: Sequence[Node], names: Sequence[str], ssl: Sequence[str]) -> None:
        """Run the stages on a second of silence, to learn the widths, rates and models of their features.

        Args:
            nodes: the stages to run, in order; they may read PCM and captions.
            names: names of those among them that compute features.
            ssl: encoders to compute states of.

        Raises:
            UsageProblem: no stage computes states of an encoder.
        """
        self._nodes = tuple(nodes)
        made = {column for node in nodes for column in (node.column, *node.stage_type.working)}
        read = {column for node in nodes for column in (*node.stage_type.reads, *node.stage_type.reads_if_present)}
        self.reads = sorted({"uri", "track_id", *read} - made)
        features = [stage for stage in self._stages if stage.name in names]
        sample = _run(features, {"pcm": pa.scalar(_SILENCE, pcm.PCM), "caption": pa.scalar(_CAPTION)})
        self._models = {stage.column: stage.model for stage in features}
        self._sizes = _sizes(sample, ssl)

    def summarize(self, unit: Unit, config: DataConfig) -> FeatureSummary:
        """Which rows features can be computed for, and their lengths, from what curation has recorded."""
        rows = unit.shard.read(["audio.duration_s", "audio.sample_rate_hz", "caption"])
        frames = [planned_frames(audio) for audio in rows["audio"].to_pylist()]
        spoken = [{variant for variant, _ in texts(caption or {})} for caption in rows["caption"].to_pylist()]
        wanted = set(config.text_variants)
        lacks = [
            _LATENTS if not length else None if (said & wanted if wanted else said) else _TEXT
            for length, said in zip(frames, spoken, strict=True)
        ]
        table = pa.table({"frames": pa.array(frames, pa.int32()), "lacks": pa.array(lacks, pa.string())})
        return FeatureSummary(table, self._sizes, self._models)

    def rows(self, songs: SongIndex) -> "AudioRows":
        """A source of these songs' rows, with computed features."""
        return AudioRows(songs, self)

    def make(self, row: Row) -> Row:
        """Compute the features of a row.

        Raises:
            Exception: any error of a stage.
        """
        return _run(self._stages, row)

    @cached_property  # created in the process that reads
    def _stages(self) -> Sequence[Stage]:
        stages = []
        for node in self._nodes:
            stage = node.build()
            stage.setup(node.weights)
            stages.append(stage)
        for stage in stages:
            stage.wanted = frozenset(stage.working) & {
                column for s in stages for column in (*s.reads, *s.reads_if_present)
            }
        return stages

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_stages"}


class AudioRows:
    """Rows of an index with features computed on reading: a `training.data.song_index.RowSource`."""

    def __init__(self, songs: SongIndex, features: AudioFeatures) -> None:
        self._features = features
        self._stored = RowReader(songs, (), more=features.reads)
        self._frames = songs.column("frames")

    def read(self, songs: Sequence[int]) -> Iterator[tuple[int, Row | CorruptShard]]:
        """Yields each song's index, in any order, with its row or with the problem of its shard or audio."""
        for song, row in self._stored.read(songs):
            yield song, row if isinstance(row, CorruptShard) else self._complete(row, self._frames[song])

    def _complete(self, row: Row, frames: int) -> Row | CorruptShard:
        uri = row["uri"].as_py()
        try:
            if track_id(uri) != row["track_id"].as_py():
                return CorruptShard(uri, "its bytes are not those that were curated")
            made = self._features.make(row)
        except Exception as problem:  # as in curation, any failure of a stage costs only that song
            return CorruptShard(uri, f"{type(problem).__name__}: {problem}")
        if made[_LATENTS]["frames"].as_py() != frames:
            return CorruptShard(uri, f"it has {made[_LATENTS]['frames']} latent frames, but its shard says {frames}")
        return {**row, **made}


def _run(stages: Iterable[Stage], row: Row) -> Row:
    """Run the stages on a row and add their columns, in the columns' Arrow types."""
    for stage in stages:
        values = stage.run(pa.table({name: pa.array([value]) for name, value in row.items()}))
        types = {stage.column: stage.type, **{name: stage.working[name] for name in stage.wanted}}
        row = {**row, **{name: pa.array(values[name], types[name])[0] for name in types}}
    return row


def _sizes(sample: Row, ssl: Sequence[str]) -> dict[tuple[str, str], frozenset[Any]]:
    """Widths and rates of a row's features, as in `FeatureSummary.sizes`."""
    sizes = {(_TEXT, "dim"): frozenset({sample[_TEXT][0]["dim"].as_py()})}
    for encoder in ssl:
        states = sample[_SSL].as_py()
        if encoder not in states:
            known = ", ".join(name for name in states if name != "model")
            raise UsageProblem(f"--ssl: there are no states of {encoder}; the stage ssl computes those of {known}")
        sizes |= {(f"{_SSL}.{encoder}", name): frozenset({states[encoder][name]}) for name in ("dim", "rate_hz")}
    return sizes


def planned_frames(audio: Mapping[str, Any] | None) -> int:
    """Latent frames of a song from its shard's `audio` column; libsoxr rounds the length to whole samples."""
    if not audio or not audio["duration_s"]:
        return 0
    rate_hz = audio["sample_rate_hz"]
    samples = round(audio["duration_s"] * rate_hz)
    return latent_length((2 * samples * CODEC_HZ + rate_hz) // (2 * rate_hz), CODEC_HZ)
