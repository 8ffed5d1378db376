"""Resemblyzer's speaker encoder (GE2E, Wan et al. 2018): training checkpoint to safetensors, without the optimiser."""

from pathlib import Path

import torch
from safetensors.torch import save_file


def convert(source: Path, target: Path) -> None:
    """Write `model.safetensors` with the parameters of `stages.nets.resemblyzer.SpeakerEncoder`.

    Args:
        source: folder with `pretrained.pt`.
        target: folder to write into.
    """
    state = torch.load(source / "pretrained.pt", map_location="cpu", weights_only=True)["model_state"]
    # The similarity scale and offset belong to the training loss.
    tensors = {_renamed(name): state[name].contiguous() for name in sorted(state) if not name.startswith("similarity_")}
    save_file(tensors, target / "model.safetensors")


def _renamed(name: str) -> str:
    return name.replace("linear.", "projection.")
