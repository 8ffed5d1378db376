"""Settings of any training run, from presets, a file, flags and `--set`; later ones take precedence."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import UsageProblem
from training.dit.presets import deep_merge

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def read_settings(
    kind: type[ConfigT],
    names: Mapping[str, str],
    *,
    presets: Sequence[Mapping[str, Any]],
    file: Path | None,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
) -> ConfigT:
    """Merge and validate the settings of a run.

    Args:
        kind: class of the settings.
        names: flag -> the setting it sets; `--set` reaches all others.
        presets: partial settings.
        file: YAML file of settings.
        flags: flag -> value; None if not given.
        overrides: `key.sub=value`.

    Raises:
        UsageProblem: the settings are invalid; the message lists every problem with its flag.
    """
    settings = deep_merge(
        *presets,
        _read(file) if file else {},
        *(_nested(names[flag], value) for flag, value in flags.items() if value is not None),
        *map(_override, overrides),
    )
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        problems = [_format_problem(problem, kind, names) for problem in error.errors()]
        raise UsageProblem("\n       ".join(problems)) from error


def named(flag: str, name: str, choices: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """A preset by name.

    Raises:
        UsageProblem: the name is unknown; the message lists the names.
    """
    if name not in choices:
        raise UsageProblem(f"{flag}: there is no {name}; choose from {', '.join(choices)}")
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


def _format_problem(problem: Mapping[str, Any], kind: type[BaseModel], names: Mapping[str, str]) -> str:
    """A pydantic error as text, with the flag of its setting; unchanged if it concerns several settings."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(message)
    key = ".".join(str(part) for part in problem["loc"])
    flag = next((flag for flag, setting in names.items() if key == setting), f"--set {key}")
    if problem["type"] == "missing":
        return f"{flag} is missing" if key != "data" else "DATASET is missing"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _settings(kind), n=1, cutoff=0.4)
        return f"--set {key}: there is no such setting{f'; did you mean {near[0]}?' if near else ''}"
    return f"{flag}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"


def _settings(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings of a model."""
    names = []
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(kind)]
        names += _settings(kinds[0], f"{prefix}{name}.") if kinds else [f"{prefix}{name}"]
    return names


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
