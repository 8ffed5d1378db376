"""The workers of one operator: started where the cluster has room for them, ended when it has not."""

from collections.abc import Container, Set
from dataclasses import dataclass, field

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError

from pipeline.execution.flight_recorder import Station
from pipeline.execution.worker import Worker

DIED = (ActorDiedError, ActorUnavailableError, OutOfMemoryError)  # out of reach is as good as dead
_STILLBORN = 10  # workers in a row that end before they begin a block: no song's fault, and more will not help


@dataclass(frozen=True)
class Claims:
    """What each worker of an operator takes of its node."""

    cpus: float = 0.0
    gpus: float = 0.0


_idle: dict[Claims, list[tuple[ActorHandle, Station]]] = {}  # workers of this connection to Ray


@dataclass
class ActorPool:
    """The workers of one operator.

    Attributes:
        job: the operator's specification, in the object store.
        first_stage: of the operator.
        claims: of each worker.
        depth: blocks that a worker may have at a time.
    """

    job: ObjectRef
    first_stage: str
    claims: Claims
    depth: int = 1
    workers: dict[ActorHandle, Station] = field(default_factory=dict)
    starting: dict[ObjectRef, ActorHandle] = field(default_factory=dict)
    stillborn: int = 0

    def resize(self, size: int, nodes: Container[str]) -> list[ActorHandle]:
        """Start workers up to a size, idle ones first, or end some of those that have not come up.

        Args:
            size: workers that there should be.
            nodes: ids of those that are alive; an idle worker may have gone with its node.

        Returns:
            Idle workers of an earlier pass that are this pool's now.
        """
        idle, reused = _idle.get(self.claims, []), []
        while len(self.workers) + len(self.starting) < size:
            if idle:
                worker, station = idle.pop()
                if station.node in nodes:
                    self.workers[worker] = station
                    reused.append(worker)
            else:
                new = self._started()
                self.starting[new.ready.remote()] = new
        while self.starting and len(self.workers) + len(self.starting) > size:
            ray.kill(self.starting.popitem()[1])
        return reused

    def _started(self) -> ActorHandle:
        # Spread, so that a node that dies takes few workers along and no node's object store gets all blocks.
        options = {"num_cpus": self.claims.cpus, "num_gpus": self.claims.gpus, "scheduling_strategy": "SPREAD"}
        return Worker.options(**options).remote()  # type: ignore[attr-defined]

    def arrived(self, ready: ObjectRef) -> ActorHandle | None:
        """A worker has come up, or has ended before it did: then None.

        Raises:
            RayError: many in a row have ended.
        """
        worker = self.starting.pop(ready)
        try:
            self.workers[worker] = ray.get(ready)
        except DIED as error:
            self.lost_early(error)
            return None
        return worker

    def remove(self, worker: ActorHandle) -> None:
        """A worker is dead, out of reach or no longer wanted: kill it, or it keeps its place."""
        if self.workers.pop(worker, None) is not None:
            ray.kill(worker)

    def lost_early(self, error: RayError) -> None:
        """A worker has ended without having begun a block.

        Raises:
            RayError: many in a row have.
        """
        self.stillborn += 1
        if self.stillborn >= _STILLBORN:
            raise error

    def release(self) -> None:
        """Keep the workers for another pass; those that have not come up end."""
        _idle.setdefault(self.claims, []).extend(self.workers.items())
        for worker in self.starting.values():
            ray.kill(worker)

    def kill(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in [*self.workers, *self.starting.values()]:
            ray.kill(worker)


def end_idle(wanted: Set[Claims]) -> None:
    """End idle workers that claim what the pass does not want."""
    for claims in _idle.keys() - wanted:
        for worker, _ in _idle.pop(claims):
            ray.kill(worker)


def forget() -> None:
    """Workers end with the connection to Ray."""
    _idle.clear()
