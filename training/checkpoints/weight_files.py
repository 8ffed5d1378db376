"""Safetensors and JSON files, opened with errors that a user can mend."""

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


class CheckpointProblem(Exception):  # noqa: N818 - it says what kind of problem, as `DataProblem` does
    """Weights that cannot be used; the message names the file and says how to mend it."""


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointProblem: there is no such file, or no object in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointProblem(f"{path} cannot be read: {problem}; copy it from the release") from problem
    if not isinstance(content, dict):
        raise CheckpointProblem(f"{path} is no JSON object: copy it from the release")
    return content


@contextmanager
def open_weights(path: Path) -> Iterator[safe_open]:
    """A safetensors file on the CPU, its length checked; tensors are read when they are asked for.

    Raises:
        CheckpointProblem: it is no such file, or cut off.
    """
    try:
        weights = safe_open(path, "pt")
    except (SafetensorError, OSError) as problem:
        raise CheckpointProblem(f"{path} is damaged or cut off: {problem}; download it again") from problem
    with weights:
        yield weights


def missing_weights(folder: Path, name: str) -> CheckpointProblem:
    """The problem of a folder without the weights `name`: whether it has pickled ones, and what to do."""
    if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES):
        return CheckpointProblem(
            f"{folder} has pickled weights only ({', '.join(pickles)}), which can run code when opened: convert them "
            f"to {name}"
        )
    return CheckpointProblem(f"{folder} lacks {name}: copy it from the release")


def is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity, found without a temporary of the tensor's size."""
    return bool(torch.stack(tensor.aminmax()).isfinite().all())  # NaN is carried through both


def first_few(names: Sequence[str]) -> str:
    """`a, b, c and 7 more`."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
