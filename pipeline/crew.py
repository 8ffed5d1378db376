"""Worker processes, and the way of blocks through them from operator to operator.

Plain Ray actors: a worker is a process that stays for the next pass, so that neither starting one nor what it has
imported is paid for twice. A worker that dies is started anew by Ray, and its blocks come back to it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from pipeline.jit_cache import use_own_jit_cache
from pipeline.operator import Operator

_idle: dict[tuple[float, float], list[ActorHandle]] = {}  # workers of this connection to Ray, by what they claim


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Worker:
    """A replica of whichever operator the block at hand is for; the models of one at a time are in memory."""

    def __init__(self) -> None:
        use_own_jit_cache()
        self._job: ObjectRef | None = None
        self._operator: Operator | None = None

    def ready(self) -> None:
        """Answers once the process is there."""

    def work(self, job: list[ObjectRef], block: pa.Table) -> pa.Table:
        """Put a block through the operator; `job` is a list, or Ray would hand over all of it with every block."""
        if self._operator is None or job[0] != self._job:
            self._operator = None  # the last one's models go before the next one's come
            self._operator = Operator(*ray.get(job[0]))
            self._job = job[0]
        return self._operator(block)


@dataclass
class Crew:
    """The workers of one operator.

    Attributes:
        job: the operator's specification and the tally, in the object store.
        claims: CPUs and GPUs of each worker.
        depth: blocks a worker may have at once.
    """

    job: ObjectRef
    claims: tuple[float, float]
    depth: int
    workers: list[ActorHandle]
    waiting: deque[Any] = field(default_factory=deque)  # blocks, or references to them
    load: dict[ActorHandle, int] = field(default_factory=dict)  # of those workers that have started

    @classmethod
    def hire(cls, job: ObjectRef, size: int, claims: tuple[float, float], *, depth: int) -> "Crew":
        """A crew of workers that are idle already, and new ones; idle ones that claim otherwise make room."""
        for other in _idle.keys() - {claims}:
            for worker in _idle.pop(other):
                ray.kill(worker)
        idle = _idle.setdefault(claims, [])
        workers = [idle.pop() for _ in range(min(size, len(idle)))]
        new = Worker.options(num_cpus=claims[0], num_gpus=claims[1])  # type: ignore[attr-defined]
        return cls(job, claims, depth, workers + [new.remote() for _ in range(size - len(workers))])

    @property
    def free(self) -> ActorHandle | None:
        """The worker with least to do, if it may have another block."""
        worker = min(self.load, key=self.load.__getitem__, default=None)
        return worker if worker is not None and self.load[worker] < self.depth else None

    @property
    def is_full(self) -> bool:
        """Whether enough blocks wait here, so that the crew before it had better pause."""
        return len(self.waiting) >= 2 * len(self.workers)

    def release(self) -> None:
        """The workers are free for another pass."""
        _idle.setdefault(self.claims, []).extend(self.workers)

    def dismiss(self) -> None:
        """End the workers, whatever they are at."""
        for worker in self.workers:
            ray.kill(worker)


def stream(blocks: Iterator[pa.Table], crews: Sequence[Crew]) -> Iterator[pa.Table]:
    """Blocks through all crews, as they come out of the last.

    Raises:
        ray.exceptions.RayError: the cluster failed, or an operator did.
    """
    finished = False
    try:
        yield from _stream(blocks, crews)
        finished = True
    finally:
        for crew in crews:
            if finished:
                crew.release()
            elif ray.is_initialized():  # else they have ended with the connection
                crew.dismiss()


def _stream(blocks: Iterator[pa.Table], crews: Sequence[Crew]) -> Iterator[pa.Table]:
    starting: dict[ObjectRef, tuple[Crew, ActorHandle]] = {
        worker.ready.remote(): (crew, worker) for crew in crews for worker in crew.workers
    }
    working: dict[ObjectRef, tuple[int, ActorHandle]] = {}
    while True:
        # Those at the end first: a block on its way out frees memory, a new one takes some.
        for i, crew in reversed(list(enumerate(crews))):
            while (worker := crew.free) and not (i + 1 < len(crews) and crews[i + 1].is_full):
                block = next(blocks, None) if i == 0 else crew.waiting.popleft() if crew.waiting else None
                if block is None:
                    break
                working[worker.work.remote([crew.job], block)] = (i, worker)
                crew.load[worker] += 1
        if not working and crews[0].load and not any(crew.waiting for crew in crews):
            return
        (done,), _ = ray.wait([*starting, *working], num_returns=1, fetch_local=False)
        if done in starting:
            ray.get(done)
            crew, worker = starting.pop(done)
            crew.load[worker] = 0
            continue
        i, worker = working.pop(done)
        crews[i].load[worker] -= 1
        if i + 1 < len(crews):
            crews[i + 1].waiting.append(done)
        else:
            yield ray.get(done)


def forget() -> None:
    """Workers end with the connection to Ray."""
    _idle.clear()
