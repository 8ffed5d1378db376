"""Where a network runs."""

import torch


def placed() -> torch.device:
    """The GPU that this process was given, else the CPU.

    Ray hides every GPU from a worker that asked for none, so that placement alone decides (`resources.gpus`).
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
