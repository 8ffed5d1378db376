"""A Ray cluster of several nodes on this machine, which come, go and freeze as a test likes."""

import json
import os
import signal
import socket
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
from ray.util import get_node_ip_address

from tests.support.command import ray_cluster

_PROVIDER = "tests.support.fake_nodes.Nodes"
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


@contextmanager
def autoscaling_cluster(folder: Path, most: int) -> Iterator[dict[str, str]]:
    """A head without cores, and Ray's autoscaler, which starts nodes of one core as they are asked for.

    Args:
        folder: for its configuration.
        most: nodes that it may start.

    Yields:
        What to set in the environment to join it.
    """
    head_id, port = "f" * 51 + "00000", _free_port()
    address = f"{get_node_ip_address()}:{port}"
    node = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": most}
    head = {**node, "resources": {"CPU": 0}, "max_workers": 0}
    steps = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config = {
        "cluster_name": "fake",
        "max_workers": most,
        # As one of Ray's own kind it would look for a file that is not in the wheel.
        "provider": {
            "type": "external",
            "module": _PROVIDER,
            "gcs_address": address,
            "head_node_id": head_id,
            "launch_multiple": True,
        },
        "available_node_types": {
            "worker": node,
            "ray.head.default": head,
        },
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 1,
        "upscaling_speed": 1.0,
        **{key: {} for key in ("auth", "file_mounts", "docker")},
        **{key: [] for key in (f"{step}_commands" for step in steps)},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }
    path = folder / "autoscaler.json"
    path.write_text(json.dumps(config))
    settings = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": head_id,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id,
    }
    options = (f"--port={port}", "--num-cpus=0", f"--autoscaling-config={path}", f"--object-store-memory={STORE_BYTES}")
    with ray_cluster(*options, **settings) as env:
        yield env


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
