"""Run a chain of operators and a sink over a table of rows on Ray."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from pipeline.errors import DataProblem
from pipeline.operator import Operator, OperatorSpec
from pipeline.sink import Gatherer, SinkSpec
from schemas.config import ResourceConfig

_ROWS_PER_OBJECT = 4096  # the todo table goes into the object store in pieces of this size
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
        ray.init(**options)
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def run_pass(
    rows: pa.Table,
    operators: Sequence[OperatorSpec],
    sink: type[Gatherer],
    sink_spec: SinkSpec,
    resources: ResourceConfig,
    tally: ActorHandle,
) -> Iterator[dict[str, Any]]:
    """Stream rows through operators into a sink; yield the sink's results as they come.

    Raises:
        ray.exceptions.RayError: the cluster itself failed.
    """
    _quiet()
    pieces = [rows.slice(start, _ROWS_PER_OBJECT) for start in range(0, rows.num_rows, _ROWS_PER_OBJECT)]
    data = ray.data.from_arrow(pieces).repartition(target_num_rows_per_block=resources.rows_per_block)
    blocks = -(-rows.num_rows // resources.rows_per_block)
    for spec in operators:
        data = data.map_batches(
            Operator, fn_constructor_args=(spec, tally), **_placement(spec, operators, blocks, resources)
        )
    data = data.map_batches(
        sink,
        fn_constructor_args=(sink_spec,),
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0,
        **_BATCHES,
    )
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        results = batch["result"].to_pylist()  # type: ignore[union-attr]
        yield from map(json.loads, results)


_BATCHES: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}


def _placement(
    spec: OperatorSpec, operators: Sequence[OperatorSpec], blocks: int, resources: ResourceConfig
) -> dict[str, Any]:
    """Where an operator's replicas go: one a GPU, one a request, or one a core."""
    if gpus := _gpus(spec):
        replicas = min(_gpu_replicas(sum(map(_gpus, operators))), blocks)
        batches = {"batch_size": resources.rows_per_block}  # which is a block; Ray wants it told
        # No CPU is reserved: the replica would wait for one that a CPU operator holds.
        return {"compute": _pool(replicas), "num_gpus": gpus, "num_cpus": 0, **_BATCHES, **batches}
    if requests := spec.nodes[0].concurrency:
        return {"compute": _pool(min(requests, blocks)), "num_cpus": 0, **_BATCHES}
    replicas = min(resources.replicas or _cores(), blocks)
    pools = sum(not other.nodes[0].alone for other in operators)
    return {"compute": _pool(replicas), "num_cpus": _share(replicas * pools), **_BATCHES}


def _pool(size: int) -> ray.data.ActorPoolStrategy:
    # A song takes seconds to minutes: queue one behind the one at work, so that no replica hoards while others idle.
    return ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2)


def _share(replicas: int) -> float:
    """CPUs a replica claims: all but one, split. Ray's own tasks need a whole one, or both would wait."""
    spare = max(ray.cluster_resources().get("CPU", 1.0) - 1.0, 0.0)
    return round(min(1.0, spare / replicas), 3)


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


def _quiet() -> None:
    """Our own progress is shown instead of Ray Data's."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
