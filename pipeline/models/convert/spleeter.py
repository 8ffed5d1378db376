"""Spleeter's two stems (Hennequin et al., JOSS 2020): PyTorch checkpoints of numpy arrays to one safetensors file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors.torch import save_file

_CHECKPOINTS = {"vocals": "testcheckpoint0.ckpt", "accompaniment": "testcheckpoint1.ckpt"}
# Everything that a pickled float32 array refers to; the first is under its module name from numpy 1.
_ARRAY_GLOBALS: list[Any] = [
    (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    np.dtypes.Float32DType,
]


def convert(source: Path, target: Path) -> None:
    """Write `model.safetensors` with the parameters of `stages.nets.spleeter.Spleeter`.

    Args:
        source: folder with `testcheckpoint0.ckpt` (vocals) and `testcheckpoint1.ckpt` (accompaniment).
        target: folder to write into.
    """
    tensors = {
        f"{stem}.{renamed(name)}": torch.from_numpy(array)
        for stem, checkpoint in _CHECKPOINTS.items()
        for name, array in _load(source / checkpoint).items()
        if not name.startswith("down6_act")  # nothing reads the normalised bottleneck
    }
    save_file(dict(sorted(tensors.items())), target / "model.safetensors")


def _load(path: Path) -> dict[str, np.ndarray]:
    with torch.serialization.safe_globals(_ARRAY_GLOBALS):
        return torch.load(path, map_location="cpu", weights_only=True)


def renamed(name: str) -> str:
    """`down3_act.0.bias` to `encoder.2.norm.bias`, `up1.0.weight` to `decoder.0.conv.weight`, `up7` to `mask`."""
    block, index, parameter = name.split(".")
    if block == "up7":
        return f"mask.{parameter}"
    if block.startswith("up"):
        layer = {"0": "conv", "3": "norm"}[index]
        return f"decoder.{int(block[2:]) - 1}.{layer}.{parameter}"
    depth, _, kind = block.removeprefix("down").partition("_")
    layer = {"conv": "conv", "act": "norm"}[kind]
    return f"encoder.{int(depth) - 1}.{layer}.{parameter}"
