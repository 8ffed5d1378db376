"""Resources of the machine: cores, memory, shared memory, disk, open files, GPUs."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil

from pipeline.doctor.findings import Finding, gigabytes, ok, problem, warning

# Measured with the small profile (benchmarks/RESULTS.md): 3.1 GB with two workers.
_DRIVER_BYTES, _WORKER_BYTES = 700_000_000, 1_200_000_000
_OBJECT_STORE_BYTES = 2 * 2**30  # what `pipeline.execution.cluster` gives Ray
_LITTLE_DISK_BYTES = 2_000_000_000
_RAY_FULL = 0.95  # Ray refuses to use a disk that is fuller
_FEW_FILES = 4096
_CGROUP = Path("/sys/fs/cgroup")
_SHARED = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
_ON_CPU = "use --profile small, or leave them on the CPU: --set 'resources.gpus={%s}'"


def machine(workers: int | None, models: Path, missing_bytes: int) -> Iterator[Finding]:
    """Check cores, memory and disks.

    Args:
        workers: CPU workers that the configuration asks for; None for one per core.
        models: folder of the model store.
        missing_bytes: size of the models that have to be pulled.
    """
    yield _cores(workers)
    yield _memory(workers or _core_count())
    yield _shared_memory()
    yield from _disks(models, missing_bytes)
    yield _open_files()


def gpus(wanted: Mapping[str, float], cluster: str | None) -> Finding:
    """Check the GPUs, for stages that each take a share of one; those of a cluster are not examined."""
    named = ", ".join(f"{stage} {share:g}" for stage, share in wanted.items())
    if wanted and cluster:
        return ok("GPU", f"not checked: the cluster at {cluster} has to provide them, for {named}")
    listed = _listed_by_driver()
    if not (wanted or listed):
        return ok("GPU", "none, and this run needs none")
    import torch  # here because it takes seconds to import

    seen = torch.cuda.device_count()
    found = f"nvidia-smi lists {listed or 'none'}; torch {version('torch')} sees {seen}"
    if not wanted:
        return ok("GPU", f"{found}; this run needs none")
    if sum(wanted.values()) > seen:
        fix = _ON_CPU % ", ".join(f"{stage}: 0" for stage in wanted)
        return problem("GPU", f"{found}; one worker of each stage takes {sum(wanted.values()):g} ({named})", fix)
    return ok("GPU", f"{found}, for {named}")


def _listed_by_driver() -> str:
    if shutil.which(_NVIDIA_SMI[0]):
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=10, check=True)
            return "; ".join(done.stdout.splitlines())
    return ""


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores(workers: int | None) -> Finding:
    cores, quota = _core_count(), _quota()
    if quota and quota < (workers or cores):
        found = f"{cores}, of which this container may use {quota:g}"
        return warning("CPU cores", found, f"--set resources.workers={max(1, int(quota))}")
    return ok("CPU cores", str(cores))


def _quota() -> float | None:
    """Cores that a container's limit allows."""
    with suppress(OSError, ValueError):
        limit, period = (_CGROUP / "cpu.max").read_text().split()
        return int(limit) / int(period)
    return None


def _memory(workers: int) -> Finding:
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # "max": no limit
        total = min(total, int((_CGROUP / "memory.max").read_text()))
        free = min(free, total - int((_CGROUP / "memory.current").read_text()))
    found = f"{gigabytes(free)} free of {gigabytes(total)}"
    needed = _DRIVER_BYTES + workers * _WORKER_BYTES
    if free >= needed:
        return ok("memory", found)
    fitting = int((free - _DRIVER_BYTES) // _WORKER_BYTES)
    found += f"; {workers} workers of the small profile take about {gigabytes(needed)}"
    if fitting < 1:
        return problem("memory", found, "close other programs, or use a machine with more memory")
    return warning("memory", found, f"--set resources.workers={fitting}")


def _shared_memory() -> Finding:
    if not _SHARED.is_dir():
        return warning("shared memory", f"no {_SHARED}: Ray keeps its objects on disk", "mount a tmpfs there")
    size = shutil.disk_usage(_SHARED).total
    if size < _OBJECT_STORE_BYTES:
        needed = gigabytes(_OBJECT_STORE_BYTES)
        found = f"{_SHARED} has {gigabytes(size)}, Ray wants {needed} and uses the disk instead"
        return warning("shared memory", found, "in a container: docker run --shm-size=3g")
    return ok("shared memory", f"{gigabytes(size)} in {_SHARED}")


def _disks(models: Path, missing_bytes: int) -> Iterator[Finding]:
    yield _disk(
        "disk for models", models, missing_bytes, "set SONGMILL_MODELS to another folder", writes=missing_bytes > 0
    )
    yield _disk("disk for datasets", Path.cwd(), 0, "give --out another folder", writes=True)
    scratch = Path(os.environ.get("RAY_TMPDIR") or "/tmp")  # noqa: S108 - Ray's own default
    usage = shutil.disk_usage(_existing(scratch))
    found = f"{gigabytes(usage.free)} free at {scratch}"
    if usage.used > _RAY_FULL * usage.total:
        found += ": it is so full that Ray refuses to use it"
        yield warning("disk for Ray", found, "free some space, or set RAY_TMPDIR to another folder")
    else:
        yield ok("disk for Ray", found)


def _disk(name: str, folder: Path, needed: int, otherwise: str, *, writes: bool) -> Finding:
    there = _existing(folder)
    free = shutil.disk_usage(there).free
    found = f"{gigabytes(free)} free at {folder}"
    if writes and not os.access(there, os.W_OK):
        return warning(name, f"{there} cannot be written to", otherwise)
    if free < needed:
        return problem(name, f"{found}, {gigabytes(needed)} are needed", f"free some space, or {otherwise}")
    if free < needed + _LITTLE_DISK_BYTES:
        return warning(name, found, f"free some space, or {otherwise}")
    return ok(name, found)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest existing parent."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (soft limit; hard limit {hard})" if hard != soft else str(soft)
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        return warning("open files", found, f"ulimit -n {_FEW_FILES} (in a container: --ulimit nofile={_FEW_FILES})")
    return ok("open files", found)
