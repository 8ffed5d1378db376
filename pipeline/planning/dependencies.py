"""Whether the libraries of a run's stages are installed, and which run those that are would do for."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from pydantic import ValidationError

from pipeline.models.errors import ModelStoreError
from pipeline.models.store import ModelStore
from pipeline.planning.dag import wanted_libraries
from schemas import columns
from schemas.config import CurateConfig, StageConfig
from stages.base import Stage
from stages.libraries import Library, how_to_install
from stages.registry import ENGINES, stage_class


def missing_libraries(config: CurateConfig) -> dict[Library, list[str]]:
    """Libraries that are not installed on this machine -> the stages that want them. Nothing is imported."""
    return {library: stages for library, stages in wanted_libraries(config).items() if not library.installed}


def lack_of(missing: Mapping[Library, Sequence[str]], config: CurateConfig, store: ModelStore) -> str:
    """What is missing for which stages, the command that installs all of it, and the options to do without."""
    named = "; ".join(f"{library.name} (stage {', '.join(stages)})" for library, stages in missing.items())
    without = options_without(config, store)
    otherwise = f"\n    or go without: {without}" if without else ""
    return f"not installed: {named}\n    run: {how_to_install(missing)}{otherwise}"


def options_without(config: CurateConfig, store: ModelStore) -> str:
    """Options under which the same command needs none of the libraries that are missing.

    A stage takes another engine that is installed, has its models and takes the stage's parameters; else it is left
    out, with those that read its columns. "" where no stage would be left.
    """
    chosen = _what_can_run(config.stages, store)
    if not chosen:
        return ""
    options = [
        f"--set {stage}.engine={engine}" for stage, engine in chosen.items() if engine != config.stages[stage].engine
    ]
    if len(chosen) < len(config.stages):
        options.append(f"--stages {','.join(chosen)}")
    return " ".join(options)


def _what_can_run(stages: Mapping[str, StageConfig], store: ModelStore) -> dict[str, str | None]:
    """Stage -> engine, for every stage that can run; one that lacks a column which it reads tries its next engine."""
    candidates = {name: _engines(name, config, store) for name, config in stages.items()}
    while True:
        chosen = {name: next(iter(engines)) for name, engines in candidates.items() if engines}
        kinds = {name: candidates[name][engine] for name, engine in chosen.items()}
        written = {*columns.IDENTITY.names}.union(*((kind.column, *kind.working) for kind in kinds.values()))
        stuck = [name for name, kind in kinds.items() if not kind.reads.keys() <= written]
        if not stuck:
            return chosen
        for name in stuck:
            del candidates[name][chosen[name]]


def _engines(name: str, config: StageConfig, store: ModelStore) -> dict[str | None, type[Stage]]:
    """Engines of a stage that could run here, the configured one first: what models that lacks is told elsewhere."""
    engines = {}
    for engine in dict.fromkeys((config.engine, *ENGINES.get(name, ()))):
        with suppress(KeyError, ImportError, AttributeError, TypeError, ValidationError, ModelStoreError):
            kind = stage_class(name, engine)
            stage = kind(kind.Params.model_validate(config.params))
            if engine != config.engine:
                for model in stage.models:
                    store.resolve(model)
            if all(library.installed for library in kind.libraries):
                engines[engine] = kind
    return engines
