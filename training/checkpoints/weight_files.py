"""Safetensors and JSON files, opened with errors that name the file and the fix."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHOWN = 3


class CheckpointProblem(Exception):  # noqa: N818 - named like `DataProblem`
    """Weights that cannot be used; the message names the file and the fix."""


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointProblem: the file is missing, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointProblem(f"{path} cannot be read: {problem}; copy it from the release") from problem
    if not isinstance(content, dict):
        raise CheckpointProblem(f"{path} is not a JSON object: copy it from the release")
    return content


@contextmanager
def open_weights(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file on the CPU and check its length; tensors are read on demand.

    Raises:
        CheckpointProblem: it is not a safetensors file, or is cut off.
    """
    try:
        weights = safe_open(path, "pt")
    except (SafetensorError, OSError) as problem:
        raise CheckpointProblem(f"{path} is damaged or cut off: {problem}; download it again") from problem
    with weights:
        yield weights


def missing_weights(folder: Path, name: str) -> CheckpointProblem:
    """The error for a folder without the weights file `name`, which says if it has pickled weights instead."""
    if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES):
        return CheckpointProblem(
            f"{folder} has pickled weights only ({', '.join(pickles)}), which can run code when opened: convert them "
            f"to {name}"
        )
    return CheckpointProblem(f"{folder} lacks {name}: copy it from the release")


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no infinity; needs no temporary of the tensor's size."""
    return bool(torch.stack(tensor.aminmax()).isfinite().all())  # NaN is carried through both


def first_few(names: Sequence[str]) -> str:
    """Names joined for a message, at most three: `a, b, c and 7 more`."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
