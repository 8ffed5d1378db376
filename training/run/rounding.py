"""What the last bits of a step rest on: held where they can be, noted in every checkpoint, told where they changed.

The sum of a row of products is rounded after every addition, so its last bits follow from the order: from how many
threads share it, from the instructions that the processor has and from the code that a library has for them. Two
processes take the same steps, bit for bit, if all of that is the same for them.
"""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

Environment = Mapping[str, str | int]

THREADS = "threads"


def fix_threads(threads: int | None, before: Environment | None) -> None:
    """Compute in as many threads as asked for, else in as many as before; a new run keeps those that PyTorch chose.

    Called before anything is computed. PyTorch takes its number from OMP_NUM_THREADS, which Ray sets as it places a
    worker, or from the cores that a process may use: neither has to be what it was when the run began. Setting it, even
    to what it is, also forbids MKL to take fewer where it sees fit.

    Args:
        threads: of the CPU; None leaves it open.
        before: `conditions` of the checkpoint to go on from; None at the start.
    """
    noted = before.get(THREADS) if before else None
    torch.set_num_threads(threads or int(noted or torch.get_num_threads()))


def environment(device: torch.device | str) -> Environment:
    """What this process's steps rest on: threads, PyTorch's version, processor, MKL's mode and, on one, the GPU."""
    device = torch.device(device)
    processor = f"{_processor_name()}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        THREADS: torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor,
        "MKL_CBWR": os.environ.get("MKL_CBWR", ""),
        **({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}),
    }


def changes(before: Environment, now: Environment) -> list[str]:
    """What is not as it was, such as `threads: 2, was 4`; nothing where nothing was noted."""
    return [f"{name}: {now.get(name, 'none')}, was {value}" for name, value in before.items() if now.get(name) != value]


def _processor_name() -> str:
    """As Linux tells it, `AMD EPYC 7763 64-Core Processor`; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")
