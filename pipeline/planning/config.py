"""Build the configuration of a run: a profile, overridden by a YAML file, overridden by the command line."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.errors import UsageProblem
from schemas.config import CurateConfig
from stages.registry import stage_class

PROFILES = ("small", "full")


class ConfigError(UsageProblem):
    """An invalid configuration; the message names the key and the fix."""


def build_config(
    *,
    file: Path | None = None,
    profile: str | None = None,
    only: Iterable[str] = (),
    add: Iterable[str] = (),
    overrides: Iterable[str] = (),
    **options: Any,
) -> CurateConfig:
    """Merge a profile, a YAML file and the command line.

    Args:
        file: YAML with any part of `CurateConfig`; its `stages`, a list of names or a mapping, select a subset.
        profile: `small` or `full`; overrides the file's. Default: `small`.
        only: names of the stages to run instead of the profile's.
        add: names of stages to run in addition.
        overrides: `stage.param=value`, `column.min_field=value` or `section.key=value`; values are YAML.
        options: `input`, `output`, `lyrics`, `license`, `source`, `require_license`; None means not given.

    Raises:
        ConfigError: unknown stage, parameter or key, or a value of the wrong type.
    """
    given = _read_yaml(file) if file else {}
    profile = profile or given.get("profile") or "small"
    if profile not in PROFILES:
        raise ConfigError(f"no profile named {profile!r}; choose one of {', '.join(PROFILES)}")
    config = _profile(profile)
    _merge_stages(config, given.pop("stages", None))
    _merge(config, given)
    config["profile"] = profile
    if names := list(only):
        _merge_stages(config, names)
    for name in add:
        config["stages"].setdefault(name, config["on_request"].get(name) or {})
    del config["on_request"]
    _apply_options(config, options)
    for override in overrides:
        _apply_override(config, override)
    if unknown := sorted(set(given.get("gates") or {}) - set(_columns_of(config))):
        raise ConfigError(
            f"gates: no stage of this run writes {', '.join(unknown)}; its columns are {_columns_text(config)}"
        )
    return _validate(config)


def build_addition(
    dataset: str,
    profile: str,
    planned: Mapping[str, Mapping[str, Any]],
    *,
    add: Iterable[str],
    overrides: Iterable[str] = (),
) -> CurateConfig:
    """The configuration for adding stages to an existing dataset.

    Args:
        dataset: where it is, a folder or a URL.
        profile: the one it was made with; supplies the defaults of the added stages.
        planned: stages of the dataset's plan that have to run again, with their engines and parameters.
        add: names of the stages to add.
        overrides: `stage.param=value` or `resources.key=value`.

    Raises:
        ConfigError: as `build_config`.
    """
    known_profile = _profile(profile)
    known = known_profile["stages"] | known_profile["on_request"]
    stages = {**planned, **{name: known.get(name) or {} for name in add}}
    config: dict[str, Any] = {
        "input": {"path": dataset},
        "output": dataset,
        "profile": profile,
        "stages": stages,
        "resources": known_profile.get("resources", {}),
    }
    for override in overrides:
        _apply_override(config, override)
    if config.get("gates"):
        raise ConfigError(
            "--set: adding stages does not apply thresholds to rows; to change thresholds use curate --update"
        )
    return _validate(config)


def _profile(name: str) -> dict[str, Any]:
    """A profile: parts of a configuration, and under `on_request` the defaults of stages that only `--add` enables."""
    text = resources.files("pipeline.planning").joinpath("profiles", f"{name}.yaml").read_text("utf-8")
    return {"on_request": {}, **yaml.safe_load(text)}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected keys such as input, stages, gates; found {type(loaded).__name__}")
    return loaded


def _merge_stages(config: dict[str, Any], chosen: list[str] | Mapping[str, Any] | None) -> None:
    """Reduce the stages to those that `chosen` names; parameters it does not give come from the profile."""
    if chosen is None:
        return
    named = {name: {} for name in chosen} if isinstance(chosen, list) else {k: v or {} for k, v in chosen.items()}
    config["stages"] = {name: {**config["stages"].get(name, {}), **params} for name, params in named.items()}


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _apply_options(config: dict[str, Any], options: Mapping[str, Any]) -> None:
    if isinstance(config.get("input"), str):
        config["input"] = {"path": config["input"]}
    source = config.setdefault("input", {})
    for option, key in (("input", "path"), ("license", "license"), ("source", "source")):
        if options.get(option) is not None:
            source[key] = str(options[option])
    if options.get("require_license"):
        source["require_license"] = options["require_license"]
    for option in ("output", "lyrics"):
        if options.get(option) is not None:
            config[option] = options[option]
    if config.get("lyrics") and "lyrics" in config["stages"]:
        config["stages"]["lyrics"].setdefault("library", str(config["lyrics"]))


def _apply_override(config: dict[str, Any], override: str) -> None:
    target, separator, text = override.partition("=")
    owner, dot, key = target.strip().partition(".")
    if not separator or not dot:
        raise ConfigError(f"--set {override}: expected stage.param=value, such as quality.min_bandwidth_hz=15000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not a valid YAML value: {error}") from error
    if owner in ("resources", "dedup", "input", "storage"):
        config[owner] = {**(config.get(owner) or {}), key: value}
    elif owner in config["stages"] and (key == "engine" or key in _params_of(config, owner)):
        config["stages"][owner][key] = value
    elif key.startswith(("min_", "max_")) and owner in _columns_of(config):
        config.setdefault("gates", {}).setdefault(owner, {})[key] = value
    else:
        raise ConfigError(f"--set {override}: {_unknown_override(config, owner)}")


def _params_of(config: Mapping[str, Any], stage: str) -> Iterable[str]:
    try:
        return stage_class(stage, config["stages"][stage].get("engine")).Params.model_fields
    except KeyError as error:
        raise ConfigError(error.args[0]) from error


def _columns_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Column -> the stage of this run that owns it."""
    owned = {}
    for name, stage in config["stages"].items():
        with suppress(KeyError, ImportError, AttributeError, TypeError):  # build_dag reports what is wrong
            owned[stage_class(name, stage.get("engine")).column] = name
    return owned


def _columns_text(config: Mapping[str, Any]) -> str:
    return ", ".join(_columns_of(config))


def _unknown_override(config: Mapping[str, Any], owner: str) -> str:
    owned = _columns_of(config)
    if owner not in config["stages"]:
        return f"no stage or column {owner!r} in this run; it has {', '.join(sorted({*config['stages'], *owned}))}"
    params = ", ".join(_params_of(config, owner)) or "none"
    column = next((column for column, stage in owned.items() if stage == owner), owner)
    return f"parameters of {owner}: {params}; thresholds use its column: {column}.min_FIELD or {column}.max_FIELD"


def _validate(config: Mapping[str, Any]) -> CurateConfig:
    try:
        return CurateConfig.model_validate(config)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError("configuration: " + "; ".join(problems)) from error
