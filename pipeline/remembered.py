"""The configuration that a dataset was last written with, so that work on it can go on without being told again."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.dag import Dag
from pipeline.errors import DataProblem
from pipeline.ledger import write_durably
from schemas.config import CurateConfig, StageConfig
from schemas.dataset import Layout


def remember_config(layout: Layout, config: CurateConfig, dag: Dag) -> None:
    """Write a configuration down, with absolute paths, for the next command may be given elsewhere."""
    local = {} if "://" in config.input.path else {"path": str(Path(config.input.path).absolute())}
    stages = {node.name: StageConfig(engine=node.engine, **_absolute(node.params.model_dump())) for node in dag.nodes}
    update: dict[str, Any] = {
        "input": config.input.model_copy(update=local),
        "output": layout.root,
        "lyrics": config.lyrics and config.lyrics.absolute(),
        "stages": stages,
    }
    _write(layout, config.model_copy(update=update))


def change_gates(layout: Layout, gates: dict[str, dict[str, float]]) -> None:
    """Let the remembered configuration have other thresholds."""
    _write(layout, remembered_config(layout).model_copy(update={"gates": gates}))


def remembered_config(layout: Layout) -> CurateConfig:
    """The configuration of the last run.

    Raises:
        DataProblem: the dataset remembers none.
    """
    if not layout.config.is_file():
        raise DataProblem(
            f"{layout.root} does not remember how it was made; give the whole command once more: "
            "songmill curate INPUT --out DATASET ..."
        )
    try:
        config = CurateConfig.model_validate_json(layout.config.read_bytes())
    except ValidationError as error:
        raise DataProblem(f"{layout.config}: {error}; delete it and give the whole curate command again") from error
    return config.model_copy(update={"output": layout.root})  # the folder may have moved since


def _write(layout: Layout, config: CurateConfig) -> None:
    content = config.model_dump_json(indent=2).encode()
    if not layout.config.exists() or layout.config.read_bytes() != content:
        write_durably(layout.config, content)


def _absolute(params: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in params.items()}
