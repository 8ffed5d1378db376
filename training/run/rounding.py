"""The environment that the last bits of a step depend on: kept constant where possible, recorded in every checkpoint.

A sum of products is rounded after every addition, so its last bits depend on the order of additions: on the number of
threads, the processor's instructions and the library's code for them. Two processes take the same steps, bit for bit,
if all of these are the same.
"""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

Environment = Mapping[str, str | int]

THREADS = "threads"


def fix_threads(threads: int | None, before: Environment | None) -> None:
    """Set the number of CPU threads: as asked for, else as before; a new run keeps the number that PyTorch chose.

    To be called before anything is computed. PyTorch takes the number from OMP_NUM_THREADS, which Ray sets when it
    places a worker, or from the cores that the process may use: both may have changed since the run started. Setting
    it, even to its current value, also keeps MKL from using fewer threads when it sees fit.

    Args:
        threads: CPU threads; None keeps those of the checkpoint.
        before: `environment` of the checkpoint to resume from; None for a new run.
    """
    noted = before.get(THREADS) if before else None
    torch.set_num_threads(threads or int(noted or torch.get_num_threads()))


def environment(device: torch.device | str) -> Environment:
    """Threads, PyTorch version, processor, MKL's mode and, if the device is one, the GPU of this process."""
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
    """What has changed, such as `threads: 2, was 4`; only recorded entries are compared."""
    return [f"{name}: {now.get(name, 'none')}, was {value}" for name, value in before.items() if now.get(name) != value]


def _processor_name() -> str:
    """From /proc/cpuinfo, such as `AMD EPYC 7763 64-Core Processor`; elsewhere Python's `platform.processor`."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")
