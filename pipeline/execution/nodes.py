"""The nodes of a Ray cluster: which are there, what they have, which are about to leave."""

from dataclasses import dataclass

import ray
from ray._private.state import state


@dataclass(frozen=True)
class ClusterNode:
    """A node that is alive.

    Attributes:
        id: Ray's, in hex.
        name: of its host.
        cpus: that Ray may give away there.
        gpus: likewise.
        store_bytes: size of its object store.
        is_leaving: whether it has a drain notice: it was idle, or its machine is about to be taken away.
    """

    id: str
    name: str
    cpus: float
    gpus: float
    store_bytes: int
    is_leaving: bool = False


def nodes_alive() -> dict[str, ClusterNode]:
    """Id -> node, of all nodes that are alive; costs a request or two to the head."""
    leaving = state.get_draining_nodes()
    return {
        found["NodeID"]: ClusterNode(
            id=found["NodeID"],
            name=found["NodeManagerHostname"],
            cpus=found["Resources"].get("CPU", 0.0),
            gpus=found["Resources"].get("GPU", 0.0),
            store_bytes=int(found["Resources"].get("object_store_memory", 0)),
            is_leaving=found["NodeID"] in leaving,
        )
        for found in ray.nodes()
        if found["Alive"]
    }
