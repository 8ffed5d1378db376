"""Actor pools, and the way of blocks through them from operator to operator.

Plain Ray actors: a worker is a process that stays for the next pass, so that neither starting one nor what it has
imported is paid for twice. Ray retries nothing: when a worker dies, its blocks set out again from their rows, which the
driver still has, and another worker takes its place. Whether a row or a stage is to blame,
`pipeline.execution.worker_deaths` decides.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, OutOfMemoryError, RayError

from pipeline.execution.fate import Fate
from pipeline.execution.flight_recorder import FlightRecorder, Station, recordings
from pipeline.execution.jit_cache import use_own_jit_cache
from pipeline.execution.operator import Operator, Report
from pipeline.execution.postmortem import Death, explain
from pipeline.execution.run_counts import AtWork, RunCounts

_DIED = (ActorDiedError, ActorUnavailableError, OutOfMemoryError)  # out of reach is as good as dead
_STILLBORN = 10  # workers in a row that end before they begin a block: no song's fault, and more will not help
_idle: dict[tuple[float, float], list[tuple[ActorHandle, Station]]] = {}  # workers of this connection, by their claims


@ray.remote(max_restarts=0, max_task_retries=0)
class Worker:
    """A replica of whichever operator the block at hand is for; the models of one at a time are in memory."""

    def __init__(self) -> None:
        use_own_jit_cache()
        self._recorder = FlightRecorder()
        self._job: ObjectRef | None = None
        self._operator: Operator | None = None

    def ready(self) -> Station:
        """Answers once the process is there: where to find what it notes."""
        return self._recorder.station

    @ray.method(num_returns=2)
    def work(self, job: list[ObjectRef], block: pa.Table, fates: Mapping[str, Fate]) -> tuple[Report, pa.Table]:
        """Put a block through the operator; `job` is a list, or Ray would hand over all of it with every block."""
        try:
            return self._put_through(job, block, fates)
        finally:
            self._recorder.rest()

    def _put_through(self, job: list[ObjectRef], block: pa.Table, fates: Mapping[str, Fate]) -> tuple[Report, pa.Table]:
        if self._operator is None or job[0] != self._job:
            self._operator = None  # the last one's models go before the next one's come
            spec = ray.get(job[0])
            self._recorder.note(spec.nodes[0].name, block["row_id"].to_pylist())
            self._operator = Operator(spec, self._recorder)
            self._job = job[0]
        return self._operator(block, fates)


@dataclass
class ActorPool:
    """The workers of one operator.

    Attributes:
        job: the operator's specification, in the object store.
        first_stage: of the operator.
        claims: CPUs and GPUs of each worker.
        depth: blocks a worker may have at once.
        size: how many workers it is to have.
    """

    job: ObjectRef
    first_stage: str
    claims: tuple[float, float]
    depth: int
    size: int
    waiting: deque["Block"] = field(default_factory=deque)
    starting: dict[ObjectRef, ActorHandle] = field(default_factory=dict)
    load: dict[ActorHandle, int] = field(default_factory=dict)  # blocks of those workers that are there
    stations: dict[ActorHandle, Station] = field(default_factory=dict)
    stillborn: int = 0

    def acquire(self) -> None:
        """As many workers as are lacking, first those that are idle."""
        idle = _idle.get(self.claims, [])
        while len(self.load) + len(self.starting) < self.size:
            if idle:
                self._welcome(*idle.pop())
            else:
                new = Worker.options(num_cpus=self.claims[0], num_gpus=self.claims[1]).remote()  # type: ignore[attr-defined]
                self.starting[new.ready.remote()] = new

    def arrived(self, ready: ObjectRef) -> None:
        """A worker is there, or has ended before it was.

        Raises:
            RayError: many in a row have.
        """
        worker = self.starting.pop(ready)
        try:
            self._welcome(worker, ray.get(ready))
        except _DIED as error:
            self.lost_early(error)
            self.acquire()

    def done(self, worker: ActorHandle) -> None:
        """A worker is through with a block; it may have died since."""
        if worker in self.load:
            self.load[worker] -= 1

    def lost(self, worker: ActorHandle) -> None:
        """A worker is gone, or out of reach: kill it, or its place stays taken. Another one comes."""
        if self.load.pop(worker, None) is not None:
            ray.kill(worker)
            self.acquire()

    def lost_early(self, error: RayError) -> None:
        """A worker has ended without having begun a block.

        Raises:
            RayError: many in a row have.
        """
        self.stillborn += 1
        if self.stillborn >= _STILLBORN:
            raise error

    @property
    def free(self) -> ActorHandle | None:
        """The worker with least to do, if it may have another block."""
        worker = min(self.load, key=self.load.__getitem__, default=None)
        return worker if worker is not None and self.load[worker] < self.depth else None

    @property
    def is_full(self) -> bool:
        """Whether enough blocks wait here, so that the pool before it had better pause."""
        return len(self.waiting) >= 2 * self.size

    def release(self) -> None:
        """The workers are free for another pass."""
        _idle.setdefault(self.claims, []).extend((worker, self.stations[worker]) for worker in self.load)
        for worker in self.starting.values():
            ray.kill(worker)

    def kill(self) -> None:
        """End the workers, whatever they are at."""
        for worker in [*self.load, *self.starting.values()]:
            ray.kill(worker)

    def _welcome(self, worker: ActorHandle, station: Station) -> None:
        self.load[worker], self.stations[worker] = 0, station


@dataclass(eq=False)
class Block:
    """A block on its way.

    Attributes:
        rows: as it sets out, again and again if need be.
        held: what the last operator made of it, in the object store; None before the first.
        death: of a worker that its only row, or one of a few, has killed in a stage that no row had passed.
    """

    rows: pa.Table
    held: ObjectRef | None = None
    death: Death | None = None

    @property
    def row_ids(self) -> list[str]:
        """Its rows."""
        return self.rows["row_id"].to_pylist()

    def uris(self, row_ids: Sequence[str]) -> dict[str, str]:
        """Of some of its rows."""
        rows = self.rows.filter(pc.is_in(self.rows["row_id"], pa.array(row_ids, pa.string())))
        return dict(zip(rows["row_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))

    def without(self, row_ids: Sequence[str]) -> Iterator["Block"]:
        """The rest of it, if there is any."""
        rest = self.rows.filter(pc.invert(pc.is_in(self.rows["row_id"], pa.array(row_ids, pa.string()))))
        return iter([Block(rest)] if rest.num_rows else [])

    def each(self, row_ids: Sequence[str], death: Death | None) -> Iterator["Block"]:
        """Some of its rows, each a block of its own."""
        for i, row_id in enumerate(self.row_ids):
            if row_id in row_ids:
                yield Block(self.rows.slice(i, 1), death=death)


@dataclass
class _Task:
    """A block in a worker's hands."""

    pool: int
    worker: ActorHandle
    block: Block
    made: ObjectRef


def stream(
    blocks: Iterator[pa.Table], pools: Sequence[ActorPool], counts: RunCounts, max_attempts: int
) -> Iterator[pa.Table]:
    """Blocks through all pools, as they come out of the last.

    Args:
        blocks: of rows with `row_id` and `uri`.
        pools: of the operators, in order; they need not be acquired yet.
        counts: is told of rows that are through, of those at work and of deaths.
        max_attempts: deaths of workers that a row may cause before it is set aside.

    Raises:
        StageKillsWorkers: a stage does, whatever it is given.
        ray.exceptions.RayError: the cluster failed, or an operator did.
    """
    finished = False
    try:
        yield from _Stream(blocks, pools, counts, max_attempts).run()
        finished = True
    finally:
        counts.look = list
        for pool in pools:
            if finished:
                pool.release()
            elif ray.is_initialized():  # else they have ended with the connection
                pool.kill()


class _Stream:
    def __init__(
        self, blocks: Iterator[pa.Table], pools: Sequence[ActorPool], counts: RunCounts, max_attempts: int
    ) -> None:
        self.fresh = map(Block, blocks)
        self.pools, self.counts, self.max_attempts = pools, counts, max_attempts
        self.again: deque[Block] = deque()
        self.suspects: list[Block] = []
        self.working: dict[ObjectRef, _Task] = {}
        self.deaths: dict[ActorHandle, Death | None] = {}
        self.is_over = False  # no fresh blocks are left

    def run(self) -> Iterator[pa.Table]:
        _make_room({pool.claims for pool in self.pools})
        for pool in self.pools:
            pool.acquire()
        self.counts.look = self.at_work
        while True:
            self.hand_out()
            if self.is_over and not (self.working or self.again or self.suspects or any(c.waiting for c in self.pools)):
                return
            starting = [ready for pool in self.pools for ready in pool.starting]
            (done,), _ = ray.wait([*starting, *self.working], num_returns=1, fetch_local=False)
            if done in starting:
                next(pool for pool in self.pools if done in pool.starting).arrived(done)
            else:
                yield from self.took(done)

    def hand_out(self) -> None:
        """Those at the end first: a block on its way out frees memory, a new one takes some."""
        for i, pool in reversed(list(enumerate(self.pools))):
            while (worker := pool.free) and not (i + 1 < len(self.pools) and self.pools[i + 1].is_full):
                block = pool.waiting.popleft() if pool.waiting else self.next_block() if i == 0 else None
                if block is None:
                    break
                fates = self.counts.deaths.fates(block.row_ids)
                given = block.rows if block.held is None else block.held
                report, made = worker.work.remote([pool.job], given, fates)  # type: ignore[var-annotated]
                self.working[report] = _Task(i, worker, block, made)
                pool.load[worker] += 1

    def next_block(self) -> Block | None:
        """A block to set out. One whose row has killed a worker in a stage that nobody has passed yet waits until all
        others have had their turn, for they decide whether it is the row's fault.
        """
        cleared = [b for b in self.suspects if b.death and not self.counts.deaths.is_open(b.death)]
        self.suspects = [block for block in self.suspects if block not in cleared]
        self.again.extend(Block(block.rows) for block in cleared)
        if self.again:
            return self.again.popleft()
        block = next(self.fresh, None)
        self.is_over = block is None
        if block is None and self.suspects and not self.others_are_on_their_way():
            block = self.suspects.pop(0)
            if block.death:
                self.counts.deaths.check_given_up(block.death, block.row_ids[0], block.uris(block.row_ids))
        return block

    def others_are_on_their_way(self) -> bool:
        blocks = [*(task.block for task in self.working.values()), *(b for pool in self.pools for b in pool.waiting)]
        return any(block.death is None for block in blocks)

    def took(self, done: ObjectRef) -> Iterator[pa.Table]:
        """A worker is through with a block, or dead."""
        task = self.working.pop(done)
        pool = self.pools[task.pool]
        try:
            report: Report = ray.get(done)
            is_last = task.pool + 1 == len(self.pools)
            rows = ray.get(task.made) if is_last else None
        except _DIED as error:
            self.mourn(task, error)
            return
        except ObjectLostError:  # its node is gone, with what an operator had made of it
            self.again.append(Block(task.block.rows, death=task.block.death))
            pool.done(task.worker)
            return
        pool.stillborn = 0
        pool.done(task.worker)
        self.counts.deaths.passed.update(report.passed)
        if rows is None:
            self.pools[task.pool + 1].waiting.append(replace(task.block, held=task.made))
        else:
            self.counts.finished(report)
            yield rows

    def mourn(self, task: _Task, error: RayError) -> None:
        """A worker died with this block in its hands: blame those rows of it that it was at, if it was at any."""
        pool, block = self.pools[task.pool], task.block
        if task.worker not in self.deaths:
            self.deaths[task.worker] = self.death(task, error)
            pool.lost(task.worker)
        death = self.deaths[task.worker]
        at_work = [row_id for row_id in block.row_ids if death and row_id in death.row_ids]
        if death is None or not at_work:
            self.again.append(Block(block.rows, death=block.death))
            return
        self.deaths[task.worker] = None  # counted; the other blocks that it had were only waiting
        self.counts.deaths.count(replace(death, row_ids=tuple(at_work)), self.max_attempts, block.uris(at_work))
        self.again.extend(block.without(at_work))
        if self.counts.deaths.is_open(death):
            self.suspects.extend(block.each(at_work, death))
        else:
            self.again.extend(block.each(at_work, None))

    def death(self, task: _Task, error: RayError) -> Death | None:
        """What the worker died of; None if it had not begun a block."""
        pool = self.pools[task.pool]
        (left,) = recordings([pool.stations[task.worker]])
        if left is not None:
            self.counts.deaths.passed.update(left.passed)
        death = explain(left, error, (pool.first_stage, task.block.row_ids))
        if not death.row_ids:
            pool.lost_early(error)
            return None
        return death

    def at_work(self) -> list[AtWork]:
        """What the workers are at just now, who has been longest first; called from the display's thread."""
        tasks = list(self.working.values())
        stations = {task.worker: self.pools[task.pool].stations[task.worker] for task in tasks}
        found = [said for said in recordings([*stations.values()], timeout_s=5) if said and said.stage]
        found.sort(key=lambda said: -said.for_s)
        oldest = found[0].row_ids[:1] if found else ()
        uri = next((uri for task in tasks for uri in task.block.uris(oldest).values()), "")
        return [AtWork(said.stage, said.for_s, "" if i else uri) for i, said in enumerate(found)]


def _make_room(wanted: Set[tuple[float, float]]) -> None:
    """End idle workers that hold what the pass does not want."""
    for claims in _idle.keys() - wanted:
        for worker, _ in _idle.pop(claims):
            ray.kill(worker)


def forget() -> None:
    """Workers end with the connection to Ray."""
    _idle.clear()
