"""Real recordings as rows, and stages run on one row as the operator runs them."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from stages import pcm
from stages.base import Stage, Weights
from stages.decode import decode_file

StageT = TypeVar("StageT", bound=Stage)


def load(path: Path, seconds: float | None = None, start_s: float = 0.0) -> np.ndarray:
    """A recording, or a part of it, as float32 [2, frames] at 44.1 kHz."""
    start = round(start_s * pcm.RATE_HZ)
    return _decoded(path)[:, start : None if seconds is None else start + round(seconds * pcm.RATE_HZ)].copy()


@lru_cache(maxsize=4)  # three minutes take a second to decode, and tests take several parts of the same few songs
def _decoded(path: Path) -> np.ndarray:
    return pcm.stereo(decode_file(str(path), {"pcm"}).pcm)


def ready(stage: type[StageT], weights: Callable[..., Mapping[str, Weights]], **params: Any) -> StageT:
    """A stage with its models loaded."""
    made = stage(stage.Params(**params))
    made.setup(weights(*made.models))
    return made


def measure(stage: Stage, **values: Any) -> dict[str, Any]:
    """The columns a stage makes for one row; its own column went through its Arrow type."""
    batch = pa.table({name: pa.array([values[name]], type) for name, type in stage.reads.items()})
    made = {column: rows[0] for column, rows in stage.run(batch).items()}
    return made | {stage.column: pa.array([made[stage.column]], stage.type)[0].as_py()}
