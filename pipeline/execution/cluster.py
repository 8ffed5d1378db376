"""Run a chain of operators and a sink over a table of rows on Ray."""

import logging
import math
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray._common.utils import get_default_ray_temp_dir

from pipeline.console.interrupts import Terminated, ends_on_signal
from pipeline.errors import DataProblem
from pipeline.execution import actor_pool
from pipeline.execution.actor_pool import ActorPool
from pipeline.execution.operator import OperatorSpec
from pipeline.execution.ray_address import reach
from pipeline.execution.run_counts import RunCounts
from schemas.config import ResourceConfig

_OBJECT_STORE_BYTES = 2 * 2**30
_HERE = "local"
_Result = TypeVar("_Result")
_QUIETLY: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class ClusterError(DataProblem):
    """A cluster that cannot be reached or cannot place the run's operators."""


@contextmanager
def cluster(resources: ResourceConfig) -> Iterator[None]:
    """Connect to the configured cluster, or start one on this machine, quietly; disconnect afterwards.

    Raises:
        Unreachable: no cluster answers at the configured address.
        ClusterError: Ray does not start here.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES to the user
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it calls the restart of a lost worker an error
    address = resources.ray_address or os.environ.get("RAY_ADDRESS") or _HERE
    with ends_on_signal():
        try:
            with stderr_on_failure(), _own_sigterm():
                _start() if address == _HERE else _join(address)
            yield
        finally:
            actor_pool.forget()
            ray.shutdown()


def _join(address: str) -> None:
    found = reach(address)
    try:
        ray.init(address=found, **_QUIETLY)
    except Exception as error:  # whatever its versions, tokens and nodes come to; it has no class for all of it
        raise ClusterError(f"the Ray cluster at {address} cannot be joined: {_last_line(error)}") from error


def _start() -> None:
    """Start Ray here, a second time if it does not come up: a busy machine may be too slow for its deadlines."""
    for is_last in (False, True):
        try:
            # "local", or Ray joins whatever cluster happens to run on this machine.
            ray.init(
                address=_HERE,
                num_cpus=_local_cores(),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                **_QUIETLY,
            )
        except Exception as error:  # Ray raises bare RuntimeError, Exception, OSError and more
            ray.shutdown()
            if is_last or isinstance(error, PermissionError):
                raise ClusterError(_why_not_started(error)) from error
        else:
            return


def _why_not_started(error: Exception) -> str:
    folder = Path(get_default_ray_temp_dir())
    advice = f"its logs are in {folder / 'session_latest' / 'logs'}"
    if isinstance(error, OSError | ValueError):
        advice = f"it keeps its files in {folder}; RAY_TMPDIR names another folder, short, writable and with room"
    return f"Ray does not start on this machine: {_last_line(error)}; {advice}"


def _last_line(error: Exception) -> str:
    """What an error comes to, of Ray's paragraphs and of the logs that it copies into them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Leave SIGTERM to the command: Ray takes it, and exits."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as stop:  # that is what Ray's handler does
        raise Terminated from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def stderr_on_failure() -> Iterator[None]:
    """Keep back what is written to stderr below Python: Ray announces its own log level there, every time.

    It is let out where the block fails in a way that no sentence tells.
    """
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except (DataProblem, KeyboardInterrupt):
            raise
        except BaseException:
            said.seek(0)
            os.write(stderr, said.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def run_pass(
    rows: pa.Table,
    operators: Sequence[OperatorSpec],
    sink: Callable[[pa.Table], Iterable[_Result]],
    resources: ResourceConfig,
    counts: RunCounts,
    complete: Callable[[pa.Table], pa.Table] | None = None,
) -> Iterator[_Result]:
    """Stream rows through operators into a sink, which works in this process; yield its results as they come.

    Args:
        rows: what to put through, in order.
        operators: what they go through.
        sink: what takes the blocks that come out of the last one.
        resources: replicas and sizes.
        counts: counts rows and deaths of workers.
        complete: adds to a block, as it sets out, what would take too much memory in all rows at once.

    Raises:
        StageKillsWorkers: a stage does, whatever song it is given.
        ray.exceptions.RayError: the cluster itself failed.
    """
    size = resources.rows_per_block
    blocks: Iterator[pa.Table] = (rows.slice(start, size) for start in range(0, rows.num_rows, size))
    if complete:
        blocks = map(complete, blocks)
    pools = [
        _pool(number, operators, -(-rows.num_rows // size), resources, ray.put(spec))
        for number, spec in enumerate(operators)
    ]
    for block in actor_pool.stream(blocks, pools, counts, resources.max_attempts):
        yield from sink(block)


def _pool(
    number: int, operators: Sequence[OperatorSpec], blocks: int, resources: ResourceConfig, job: ray.ObjectRef
) -> ActorPool:
    """An operator's replicas: one a GPU, one a request, or one a core."""
    spec = operators[number]
    # A song takes seconds to minutes, so that none should wait behind one while another replica idles; only where
    # blocks come with their PCM from elsewhere is one fetched while another is worked on.
    depth = 2 if number else 1
    if gpus := _gpus(spec):
        replicas = min(_gpu_replicas(sum(map(_gpus, operators))), blocks)
        claims = (0.0, gpus)  # no CPU: the replica would wait for one that a CPU operator holds
    elif requests := spec.nodes[0].concurrency:
        replicas, claims = min(requests, blocks), (0.0, 0.0)
    else:
        replicas = min(resources.replicas or _cores(), blocks)
        pools = sum(not other.nodes[0].alone for other in operators)
        claims = (_share(replicas * pools), 0.0)
    return ActorPool(job, spec.nodes[0].name, claims, depth, replicas)


def _share(replicas: int) -> float:
    """CPUs a replica claims, so that all of them fit."""
    return min(1.0, math.floor(ray.cluster_resources().get("CPU", 1.0) / replicas * 1000) / 1000)


def check_placeable(operators: Sequence[OperatorSpec]) -> None:
    """Refuse operators that would wait for ever.

    Raises:
        ClusterError: the cluster has too few GPUs for a stage.
    """
    have = ray.cluster_resources().get("GPU", 0.0)
    wanted = {spec.nodes[0].name: _gpus(spec) for spec in operators if _gpus(spec)}
    total = round(sum(wanted.values()), 6)
    if total > have:
        stages = ", ".join(f"{name} {share:g}" for name, share in wanted.items())
        raise ClusterError(
            f"the cluster has {have:g} GPUs; one replica of each of these stages takes {total:g}: {stages}. "
            "Add a machine with a GPU, take --profile small, or share them out with --set resources.gpus={...}; 0 "
            "leaves a stage on the CPU"
        )


def _gpu_replicas(shares: float) -> int:
    """Replicas of every GPU stage, so that all fit side by side; `shares` is what one of each takes together."""
    have = int(ray.cluster_resources().get("GPU", 0))
    shares = round(shares, 6)
    return max(1, have * int(1 / shares) if shares <= 1 else int(have / shares))


def _gpus(spec: OperatorSpec) -> float:
    """Share of a GPU that a replica takes; a stage with one has an operator of its own."""
    return max(node.gpus for node in spec.nodes)


def _cores() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _local_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
