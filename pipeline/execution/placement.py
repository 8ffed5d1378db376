"""How many workers each operator should have, and what each of them claims of its node."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeline.execution.actor_pool import Claims
from pipeline.execution.nodes import ClusterNode
from pipeline.execution.operator import OperatorSpec
from pipeline.planning.fusion import gpu_share
from schemas.config import ResourceConfig

_PENDING = 32  # workers of an operator that may wait for nodes at a time


@dataclass(frozen=True)
class Placement:
    """The workers of one operator.

    Attributes:
        claims: of each worker.
        least: workers to have even if the nodes have fewer cores.
        most: workers to have at most, on however many nodes.
        is_elastic: whether the number follows the nodes.
    """

    claims: Claims
    least: int
    most: int
    is_elastic: bool = True

    def room(self, node: ClusterNode) -> int:
        """Workers that a node has room for: one a core, or as many as its GPUs have shares."""
        if self.claims.gpus:
            return math.floor(node.gpus / self.claims.gpus + 1e-6)
        return math.floor(node.cpus)

    def size(self, nodes: Collection[ClusterNode]) -> int:
        """Workers that there should be on these nodes."""
        if not self.is_elastic:
            return self.most
        room = sum(self.room(node) for node in nodes if not node.is_leaving)
        return min(self.most, max(self.least, room))

    def pending(self, workers: int) -> int:
        """Workers to ask for beyond those that the nodes have room for, so that an autoscaler knows of the demand.

        Twice as many nodes each time: a large cluster is up after few rounds, and a cluster that cannot grow is not
        filled with actors that wait for ever. Pending actors and not `ray.autoscaler.sdk.request_resources`: of that,
        a cluster has one at a time, which a second run overwrites, and which stays when a run is killed.
        """
        return min(max(1, workers), _PENDING, self.most - workers) if self.is_elastic else 0


def place(
    operators: Sequence[OperatorSpec], blocks: int, resources: ResourceConfig, nodes: Collection[ClusterNode]
) -> list[Placement]:
    """The placement of every operator of a pass.

    Args:
        operators: of the pass.
        blocks: that will go through it: more workers than that would have nothing to do.
        resources: what the user allows.
        nodes: of the cluster at the moment; they decide what a CPU worker claims if it has to share its core.
    """
    sharing = sum(spec.nodes[0].kind == "cpu" for spec in operators)
    return [_placement(spec, sharing, max(1, blocks), resources, nodes) for spec in operators]


def _placement(
    spec: OperatorSpec, sharing: int, blocks: int, resources: ResourceConfig, nodes: Collection[ClusterNode]
) -> Placement:
    if share := gpu_share(spec.nodes):
        return Placement(Claims(gpus=share), least=1, most=blocks)  # no CPU, or it would wait for a CPU operator's
    if requests := min((node.concurrency for node in spec.nodes if node.concurrency), default=0):
        return Placement(Claims(), least=1, most=min(requests, blocks), is_elastic=False)
    bounds = resources.workers
    least, most = min(bounds.min, blocks), min(bounds.max or blocks, blocks)
    cores = sum(node.cpus for node in nodes)
    share = min(1.0, cores / least) if cores else 1.0
    return Placement(Claims(cpus=math.floor(share / sharing * 1000) / 1000), least, most)


def unplaceable(placements: Sequence[Placement], nodes: Collection[ClusterNode]) -> list[int]:
    """Operators that no node has room for."""
    return [
        number
        for number, placement in enumerate(placements)
        if placement.is_elastic and not any(map(placement.room, nodes))
    ]
