"""Run a chain of operators and a sink over a table of rows on Ray."""

import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray

from pipeline import crew
from pipeline.crew import Crew
from pipeline.errors import DataProblem
from pipeline.operator import OperatorSpec
from pipeline.sink import Gatherer, SinkSpec
from pipeline.tally import Tally
from schemas.config import ResourceConfig

_OBJECT_STORE_BYTES = 2 * 2**30


class ClusterError(DataProblem):
    """A cluster that cannot be reached or cannot place the run's operators."""


@contextmanager
def cluster(resources: ResourceConfig) -> Iterator[None]:
    """Connect to the configured cluster, or start one on this machine, quietly; disconnect afterwards."""
    address = resources.ray_address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        options = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    else:
        # "local", or Ray joins whatever cluster happens to run on this machine.
        options |= {"address": "local", "num_cpus": _local_cores(), "object_store_memory": _OBJECT_STORE_BYTES}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES to the user
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it calls the restart of a lost worker an error

    try:
        with heard_if_it_fails():
            ray.init(**options)
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        yield
    finally:
        crew.forget()
        ray.shutdown()


@contextmanager
def heard_if_it_fails() -> Iterator[None]:
    """Keep back what is written to stderr below Python: Ray announces its own log level there, every time."""
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
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
    sink: type[Gatherer],
    sink_spec: SinkSpec,
    resources: ResourceConfig,
    tally: Tally,
    complete: Callable[[pa.Table], pa.Table] | None = None,
) -> Iterator[dict[str, Any]]:
    """Stream rows through operators into a sink, which works in this process; yield its results as they come.

    Args:
        rows: what to put through, in order.
        operators: what they go through.
        sink: what gathers them behind the last one.
        sink_spec: what it needs to know.
        resources: replicas and sizes.
        tally: counts rows and deaths of workers.
        complete: adds to a block, as it sets out, what would take too much memory in all rows at once.

    Raises:
        StageKillsWorkers: a stage does, whatever song it is given.
        ray.exceptions.RayError: the cluster itself failed.
    """
    size = resources.rows_per_block
    blocks: Iterator[pa.Table] = (rows.slice(start, size) for start in range(0, rows.num_rows, size))
    if complete:
        blocks = map(complete, blocks)
    crews = [
        _crew(number, operators, -(-rows.num_rows // size), resources, ray.put(spec))
        for number, spec in enumerate(operators)
    ]
    gatherer = sink(sink_spec)
    for block in crew.stream(blocks, crews, tally, resources.max_attempts):
        yield from map(json.loads, gatherer(block)["result"].to_pylist())


def _crew(
    number: int, operators: Sequence[OperatorSpec], blocks: int, resources: ResourceConfig, job: ray.ObjectRef
) -> Crew:
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
    return Crew(job, spec.nodes[0].name, claims, depth, replicas)


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
