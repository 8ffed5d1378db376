"""A Ray cluster of several nodes on this machine, which come, go and freeze as a test likes."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from ray._private.node import Node
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

STORE_BYTES = 200 * 2**20
# A node that does not answer is given up after about two seconds, not after a minute as by default.
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Noted(NamedTuple):
    """A line that `tests.support.toy_stages.Sleeper` has written."""

    what: str
    title: str
    node: str
    pid: int


def noted(log: Path) -> list[Noted]:
    """What sleepers have written so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [Noted(what, title, node, int(pid)) for what, title, node, pid in map(str.split, lines)]


class SmallCluster:
    """A head without cores, and nodes with a core each.

    Attributes:
        address: where to join it.
    """

    def __init__(self) -> None:
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
                "_system_config": HEALTH,
            },
        )
        self.address: str = self._cluster.address
        self._frozen: list[int] = []

    def add(self, **options: Any) -> Node:
        """A node that has joined; with one core unless told otherwise."""
        return self._cluster.add_node(**{"num_cpus": 1, "object_store_memory": STORE_BYTES, **options})

    def kill(self, node: Node) -> None:
        """End a node and its workers at once, as when its power fails."""
        self._cluster.remove_node(node, allow_graceful=False)

    def by_id(self, node_id: str) -> Node:
        """The node of that id."""
        return next(node for node in self._cluster.worker_nodes if node.node_id == node_id)

    def drain(self, node: Node) -> None:
        """Give a node the notice that its machine is about to be taken away."""
        far = int((time.time() + 3600) * 1000)
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = GcsClient(address=self.address).drain_node(node.node_id, reason, "preempted", far)
        assert accepted, why

    def freeze(self, node: Node) -> None:
        """A node that answers no more; its processes stay."""
        for pid in self.processes(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self._frozen.append(pid)

    def processes(self, node: Node) -> list[int]:
        """The raylet and its workers."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet.pid, *(child.pid for child in raylet.children(recursive=True))]

    def remove_others(self) -> None:
        """Take every node but the head away."""
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._frozen.clear()
        for node in list(self._cluster.worker_nodes):
            self.kill(node)

    def close(self) -> None:
        """End it."""
        self.remove_others()
        self._cluster.shutdown()


@contextmanager
def small_cluster() -> Iterator[SmallCluster]:
    """A cluster for the length of a block; processes that join it find the toy stages."""
    from tests.support.places import ROOT

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        cluster = SmallCluster()
        try:
            yield cluster
        finally:
            cluster.close()
