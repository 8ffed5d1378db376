"""musicnn (Pons and Serra, ISMIR 2019 late-breaking): a TensorFlow 1 checkpoint to safetensors and a list of tags."""

import ast
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pipeline.models.convert import tf_checkpoint

# TensorFlow numbers its layers in the order they were built; `stages.nets.musicnn.Musicnn` names them.
_CONVOLUTIONS = [*(f"timbral.{i}" for i in range(2)), *(f"temporal.{i}" for i in range(3))]
_MID_END = [f"mid_end.{i}" for i in range(3)]
_NORMS = ["input_norm", *(f"{block}.norm" for block in (*_CONVOLUTIONS, *_MID_END)), "pool_norm", "penultimate_norm"]
_NORM_PARAMETERS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def convert(source: Path, target: Path) -> None:
    """Write `model.safetensors` (parameters of `stages.nets.musicnn.Musicnn`) and `labels.json` (tags, in order).

    Args:
        source: folder with `configuration.py`, which lists the tags, and one folder `MTT_musicnn` or `MSD_musicnn`
            with `.index` and `.data-00000-of-00001`.
        target: folder to write into.
    """
    (checkpoint,) = source.glob("*_musicnn")
    labels = _literal(source / "configuration.py", checkpoint.name.replace("_musicnn", "_LABELS"))
    tensors = renamed(tf_checkpoint.load(checkpoint))
    save_file({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, target / "model.safetensors")
    (target / "labels.json").write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")


def _literal(path: Path, name: str) -> list[str]:
    """The value assigned to `name` in a Python file, which is parsed but not executed."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in statement.targets
        ):
            return ast.literal_eval(statement.value)
    raise KeyError(f"{path.name} assigns no {name}")


def renamed(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """TensorFlow's variables as the network's parameters, in PyTorch's layouts."""
    tensors = {}
    for number, block in enumerate([*_CONVOLUTIONS, *_MID_END]):
        kernel = variables[f"{_numbered('conv2d', number)}/kernel"]  # [height, width, in, out]
        weight = kernel.transpose(3, 2, 0, 1)
        # In the mid-end the kernel spans all features, which become the channels of a 1-D convolution.
        tensors[f"{block}.conv.weight"] = weight[:, 0].transpose(0, 2, 1) if block in _MID_END else weight
        tensors[f"{block}.conv.bias"] = variables[f"{_numbered('conv2d', number)}/bias"]
    for number, norm in enumerate(_NORMS):
        for theirs, ours in _NORM_PARAMETERS.items():
            tensors[f"{norm}.{ours}"] = variables[f"{_numbered('batch_normalization', number)}/{theirs}"]
    for number, dense in enumerate(["penultimate", "output"]):
        tensors[f"{dense}.weight"] = variables[f"{_numbered('dense', number)}/kernel"].T
        tensors[f"{dense}.bias"] = variables[f"{_numbered('dense', number)}/bias"]
    return tensors


def _numbered(layer: str, number: int) -> str:
    return f"{layer}_{number}" if number else layer
