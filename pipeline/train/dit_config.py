"""The `TrainConfig` of `songmill train dit`, from presets, a file and the command line."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from pipeline.errors import UsageProblem
from pipeline.train.settings import named, read_settings
from schemas.commits import committed_files
from schemas.dataset import Layout
from schemas.files import file_digest
from schemas.shards import shards_of
from schemas.storage.location import absolute
from schemas.storage.options import scheme
from stages.lyric_tokens import load_vocabulary
from stages.text.bpe import BUILT_IN
from training.dit.config import TrainConfig
from training.dit.presets import PRESETS, SIZES
from training.dit.previews import PreviewsConfig

# Flag -> the setting it sets; --set reaches all others.
FLAGS = {
    "--steps": "steps",
    "--lr": "optimizer.lr",
    "--batch-size": "data.batch_size",
    "--accumulation": "accumulation",
    "--checkpoint": "checkpoint",
    "--where": "data.where",
    "--ssl": "data.ssl",
    "--seed": "seed",
    "--threads": "threads",
    "--sample-prompt": "samples.prompts",
    "DATASET": "data.datasets",
}


def build_config(
    *,
    presets: Sequence[str],
    size: str | None,
    file: Path | None,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
    vocabulary: Path | None,
) -> TrainConfig:
    """Merge settings from presets, a file, flags and `--set`; later ones take precedence.

    Args:
        presets: names of presets.
        size: size of a new model.
        file: YAML file of a `TrainConfig`.
        flags: flag (see `FLAGS`) -> value; None if not given.
        overrides: `key.sub=value`.
        vocabulary: lyric vocabulary that the shards were encoded with; None is songmill's own.

    Raises:
        UsageProblem: the settings are invalid; the message lists every problem with its flag.
    """
    settings = read_settings(
        TrainConfig,
        FLAGS,
        presets=[
            *(named("--preset", name, PRESETS) for name in presets),
            {"model": named("--size", size, SIZES)} if size else {},
        ],
        file=file,
        flags=flags,
        overrides=overrides,
    )
    config = _with_full_paths(settings)
    _check_model(config, size)
    return config if config.checkpoint else _with_vocabulary(config, vocabulary)


def _with_full_paths(config: TrainConfig) -> TrainConfig:
    """With absolute paths, valid in workers and when the run is resumed from another folder."""
    checkpoint = config.checkpoint.resolve() if config.checkpoint else None
    data = config.data.model_copy(update={"datasets": tuple(map(absolute, config.data.datasets))})
    return config.model_copy(
        update={"data": data, "checkpoint": checkpoint, "samples": _with_full_sample_paths(config.samples)}
    )


def _with_full_sample_paths(samples: PreviewsConfig | None) -> PreviewsConfig | None:
    if samples is None:
        return None
    paths = {name: getattr(samples, name) for name in ("codec", "text_encoder", "vocabulary")}
    return samples.model_copy(update={name: path.resolve() for name, path in paths.items() if path})


def _check_model(config: TrainConfig, size: str | None) -> None:
    for place in config.data.datasets:
        if not scheme(place) and not Path(place).is_dir():
            raise UsageProblem(f"DATASET {place} is not a folder")
    if config.checkpoint and not config.checkpoint.is_dir():
        raise UsageProblem(f"--checkpoint {config.checkpoint} is not a folder")
    if config.checkpoint and (size or config.model):
        raise UsageProblem("--checkpoint has its own size: leave --size and model out")
    if config.lora and not config.checkpoint:
        raise UsageProblem("lora adapts a trained model: name it with --checkpoint, or choose a preset without lora")


def _with_vocabulary(config: TrainConfig, vocabulary: Path | None) -> TrainConfig:
    """Set a new model's lyric vocabulary size; the shards must have been encoded with this vocabulary."""
    if "lyric_encoder_vocab_size" in config.model:
        return config
    path = vocabulary or BUILT_IN
    try:
        known = load_vocabulary(path).get_vocab_size()
        digest = file_digest(path)[:8]
    except Exception as problem:  # tokenizers raises nothing narrower
        raise UsageProblem(f"--vocabulary {path}: {problem}") from problem
    for name in _vocabularies(config.data.datasets):
        if not name.endswith(f"@{digest}"):
            raise UsageProblem(f"the shards' lyrics were encoded with {name}: give that file as --vocabulary")
    samples = config.samples and config.samples.model_copy(
        update={"vocabulary": config.samples.vocabulary or path.resolve()}
    )
    model = {**config.model, "lyric_encoder_vocab_size": known}
    return config.model_copy(update={"model": model, "samples": samples})


def _vocabularies(datasets: Iterable[str]) -> list[str]:
    """Names of the vocabularies that the shards' lyrics were encoded with."""
    with duckdb.connect() as connection:
        shards = []
        for layout in map(Layout.at, datasets):
            layout.store.let_read(connection)
            shards += [layout.store.address(name) for name in shards_of(layout, committed_files(layout))]
        if not shards:
            return []
        try:
            names = connection.read_parquet(shards, union_by_name=True).project("lyric_tokens.vocabulary as name")
            return sorted(name for (name,) in names.distinct().fetchall() if name)
        except duckdb.Error:
            return []  # shards without lyrics, or damaged ones, which the trainer reports
