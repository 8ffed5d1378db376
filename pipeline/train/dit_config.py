"""What `songmill train dit` was asked for: presets, a file and the command line, as one `TrainConfig`."""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import UsageProblem
from schemas.dataset import Layout
from stages.lyric_bpe import BUILT_IN
from stages.lyric_tokens import load_vocabulary
from training.presets import PRESETS, SIZES, laid_over
from training.train_config import TrainConfig

# Flags and the settings they stand for; all others are reached by --set.
FLAGS = {
    "--steps": "steps",
    "--lr": "optimizer.lr",
    "--batch-size": "data.batch_size",
    "--accumulation": "accumulation",
    "--checkpoint": "checkpoint",
    "--where": "data.where",
    "--ssl": "data.ssl",
    "--seed": "seed",
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
    """The settings of presets, under those of a file, of flags and of `--set`, in this order.

    Args:
        presets: names.
        size: of a new model.
        file: YAML of a `TrainConfig`.
        flags: flag, see `FLAGS`, -> value; None is not given.
        overrides: `key.sub=value`.
        vocabulary: that the shards' lyrics were encoded with; None is songmill's own.

    Raises:
        UsageProblem: every problem found, each by its flag.
    """
    settings = laid_over(
        *(_named("--preset", name, PRESETS) for name in presets),
        {"model": _named("--size", size, SIZES)} if size else {},
        _read(file) if file else {},
        *(_nested(FLAGS[flag], value) for flag, value in flags.items() if value is not None),
        *map(_override, overrides),
    )
    config = _with_full_paths(_validated(settings))
    _check_model(config, size)
    return config if config.checkpoint else _with_vocabulary(config, vocabulary)


def _validated(settings: Mapping[str, Any]) -> TrainConfig:
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        raise UsageProblem("\n       ".join(_told(problem) for problem in error.errors())) from error


def _with_full_paths(config: TrainConfig) -> TrainConfig:
    """The same from any working folder, that of a worker or of the next start."""
    checkpoint = config.checkpoint.resolve() if config.checkpoint else None
    data = config.data.model_copy(update={"datasets": tuple(path.resolve() for path in config.data.datasets)})
    return config.model_copy(update={"data": data, "checkpoint": checkpoint})


def _check_model(config: TrainConfig, size: str | None) -> None:
    for path in config.data.datasets:
        if not path.is_dir():
            raise UsageProblem(f"DATASET {path} is no folder")
    if config.checkpoint and not config.checkpoint.is_dir():
        raise UsageProblem(f"--checkpoint {config.checkpoint} is no folder")
    if config.checkpoint and (size or config.model):
        raise UsageProblem("--checkpoint has its own size: leave --size and model out")
    if config.lora and not config.checkpoint:
        raise UsageProblem("lora adapts a trained model: say which with --checkpoint, or leave its preset out")


def _with_vocabulary(config: TrainConfig, vocabulary: Path | None) -> TrainConfig:
    """A new model that knows as many lyric tokens as the vocabulary has."""
    if "lyric_encoder_vocab_size" in config.model:
        return config
    path = vocabulary or BUILT_IN
    try:
        known = load_vocabulary(path).get_vocab_size()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    except Exception as problem:  # tokenizers raises nothing narrower
        raise UsageProblem(f"--vocabulary {path}: {problem}") from problem
    for name in _vocabularies(config.data.datasets):
        if not name.endswith(f"@{digest}"):
            raise UsageProblem(f"the shards' lyrics were encoded with {name}: give that file as --vocabulary")
    return config.model_copy(update={"model": {**config.model, "lyric_encoder_vocab_size": known}})


def _vocabularies(datasets: Iterable[Path]) -> list[str]:
    """Names of the vocabularies that the shards' lyrics were encoded with."""
    shards = [str(path) for dataset in datasets for path in sorted(Layout(dataset).shards.glob("*.parquet"))]
    if not shards:
        return []
    with duckdb.connect() as connection:
        try:
            names = connection.read_parquet(shards, union_by_name=True).project("lyric_tokens.vocabulary as name")
            return sorted(name for (name,) in names.distinct().fetchall() if name)
        except duckdb.Error:
            return []  # shards without lyrics, or damaged ones: the trainer says what is wrong with them


def _named(flag: str, name: str, choices: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if name not in choices:
        raise UsageProblem(f"{flag}: there is no {name}; choose of {', '.join(choices)}")
    return choices[name]


def _read(file: Path) -> Mapping[str, Any]:
    try:
        loaded = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageProblem(f"--config {file}: {error}") from error
    if not isinstance(loaded, dict):
        raise UsageProblem(f"--config {file}: expected keys such as steps, data; found {type(loaded).__name__}")
    return loaded


def _override(text: str) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageProblem(f"--set {text}: expected key.sub=value")
    try:
        return _nested(key.strip(), yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise UsageProblem(f"--set {text}: {error}") from error


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def _told(problem: Mapping[str, Any]) -> str:
    """A problem of pydantic's by the flag of its setting."""
    key = ".".join(str(part) for part in problem["loc"])
    flag = next((flag for flag, setting in FLAGS.items() if key == setting), f"--set {key}")
    if problem["type"] == "missing":
        return f"{flag} is missing" if key != "data" else "DATASET is missing"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _settings(TrainConfig), n=1, cutoff=0.4)
        return f"--set {key}: there is no such setting{f'; did you mean {near[0]}?' if near else ''}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{flag}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"


def _settings(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    names = []
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(kind)]
        names += _settings(kinds[0], f"{prefix}{name}.") if kinds else [f"{prefix}{name}"]
    return names


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
