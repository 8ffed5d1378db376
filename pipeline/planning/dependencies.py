"""Check that the libraries of a run's stages are installed; suggest options that work with those that are."""

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
    """Libraries that are not installed on this machine -> the stages that need them. Nothing is imported."""
    return {library: stages for library, stages in wanted_libraries(config).items() if not library.installed}


def missing_libraries_message(missing: Mapping[Library, Sequence[str]], config: CurateConfig, store: ModelStore) -> str:
    """Error message: the missing libraries by stage, the command that installs them, and options that avoid them."""
    named = "; ".join(f"{library.name} (stage {', '.join(stages)})" for library, stages in missing.items())
    without = options_without(config, store)
    otherwise = f"\n    or run without them: {without}" if without else ""
    return f"not installed: {named}\n    run: {how_to_install(missing)}{otherwise}"


def options_without(config: CurateConfig, store: ModelStore) -> str:
    """Command-line options that make the same command work without the missing libraries.

    A stage switches to another engine that is installed, has its models and accepts the stage's parameters. If there
    is none, the stage is dropped together with the stages that read its columns. "" if no stage would remain.
    """
    chosen = _runnable_engines(config.stages, store)
    if not chosen:
        return ""
    options = [
        f"--set {stage}.engine={engine}" for stage, engine in chosen.items() if engine != config.stages[stage].engine
    ]
    if len(chosen) < len(config.stages):
        options.append(f"--stages {','.join(chosen)}")
    return " ".join(options)


def _runnable_engines(stages: Mapping[str, StageConfig], store: ModelStore) -> dict[str, str | None]:
    """Stage -> engine, for every stage that can run; a stage with a missing input column tries its next engine."""
    candidates = {name: _candidate_engines(name, config, store) for name, config in stages.items()}
    while True:
        chosen = {name: next(iter(engines)) for name, engines in candidates.items() if engines}
        kinds = {name: candidates[name][engine] for name, engine in chosen.items()}
        written = {*columns.IDENTITY.names}.union(*((kind.column, *kind.working) for kind in kinds.values()))
        stuck = [name for name, kind in kinds.items() if not kind.reads.keys() <= written]
        if not stuck:
            return chosen
        for name in stuck:
            del candidates[name][chosen[name]]


def _candidate_engines(name: str, config: StageConfig, store: ModelStore) -> dict[str | None, type[Stage]]:
    """Engines of a stage that can run here, the configured one first; its missing models are reported elsewhere."""
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
