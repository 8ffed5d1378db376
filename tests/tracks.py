"""Real recordings as rows, and stages run on one row as the operator runs them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import librosa
import numpy as np
import pyarrow as pa

from stages.base import Stage, Weights

StageT = TypeVar("StageT", bound=Stage)


def load(path: Path, seconds: float | None = None, start_s: float = 0.0) -> np.ndarray:
    """A recording, or a part of it, as float32 [2, frames] at 44.1 kHz."""
    audio, _ = librosa.load(path, sr=44_100, mono=False, offset=start_s, duration=seconds)
    return np.broadcast_to(audio, (2, audio.shape[-1])).copy()


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
