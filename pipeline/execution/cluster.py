"""Run a chain of operators and a sink over a table of rows on Ray."""

import logging
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
from pipeline.execution.executor import Limits, NoNode, stream
from pipeline.execution.leftovers import children_end_with_this_process
from pipeline.execution.nodes import nodes_alive
from pipeline.execution.operator import OperatorSpec
from pipeline.execution.placement import place, unplaceable
from pipeline.execution.ray_address import reach
from pipeline.execution.run_counts import RunCounts
from pipeline.planning.fusion import gpu_share
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
    address = _address(resources)
    with ends_on_signal(), children_end_with_this_process():
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
    """Put rows through operators and into a sink, which works in this process; yields its results as they come.

    Args:
        rows: what to put through, in order.
        operators: what they go through.
        sink: takes the blocks that leave the last operator.
        resources: workers and sizes.
        counts: counts rows, nodes, workers, deaths and repeats.
        complete: adds to a block, as it enters, what would take too much memory in all rows at once.

    Raises:
        NoNode: an operator fits on no node of the cluster, and none that it fits on has come in time.
        StageKillsWorkers: a stage does, whatever song it is given.
        ray.exceptions.RayError: the cluster itself failed.
    """
    size = resources.rows_per_block
    blocks: Iterator[pa.Table] = (rows.slice(start, size) for start in range(0, rows.num_rows, size))
    if complete:
        blocks = map(complete, blocks)
    placements = place(operators, -(-rows.num_rows // size), resources, nodes_alive().values())
    pools = [
        # A song takes seconds to minutes, so that none should wait behind one while another worker idles; only where
        # blocks come with their PCM from elsewhere is one fetched while another is worked on.
        ActorPool(ray.put(spec), spec.nodes[0].name, placement.claims, depth=2 if number else 1)
        for number, (spec, placement) in enumerate(zip(operators, placements, strict=True))
    ]
    for block in stream(blocks, pools, placements, counts, _limits(resources)):
        yield from sink(block)


def check_placeable(operators: Sequence[OperatorSpec], resources: ResourceConfig) -> None:
    """Refuse operators that no node has room for, unless nodes may still come.

    Raises:
        NoNode: there is no node with a GPU for a stage, or with as many as it takes.
    """
    nodes = nodes_alive().values()
    placements = place(operators, 1, resources, nodes)
    lacking = unplaceable(placements, nodes)
    if not lacking or ((limits := _limits(resources)).grows and limits.wait_for_nodes_s):
        return
    most = max((node.gpus for node in nodes), default=0)
    wanted = "; ".join(
        f"{gpu_share(operators[i].nodes):g} for "
        + ", ".join(f"{node.name} {node.gpus:g}" for node in operators[i].nodes if node.gpus)
        for i in lacking
    )
    raise NoNode(
        f"no node of the cluster has the GPUs that a worker takes: {wanted}; the most that a node has is {most:g}. "
        "Add a machine with a GPU, take --profile small, or share them out with --set resources.gpus={...}; 0 leaves "
        "a stage on the CPU"
    )


def _limits(resources: ResourceConfig) -> Limits:
    grows = _address(resources) != _HERE
    return Limits(resources.max_attempts, resources.wait_for_nodes_s if grows else 0.0, grows)


def _address(resources: ResourceConfig) -> str:
    return resources.ray_address or os.environ.get("RAY_ADDRESS") or _HERE


def _local_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
