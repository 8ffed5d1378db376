"""Runs blocks through the operators of a pass on a Ray cluster whose workers and nodes come and go.

Ray repeats nothing and restarts nothing. When a worker, its node or the bytes of a block are lost, the block enters
again as the rows that the driver still has. `pipeline.execution.schedule` decides which block goes where,
`pipeline.execution.placement` how many workers there should be, `pipeline.execution.worker_deaths` who is to blame.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayError

from pipeline.errors import DataProblem
from pipeline.execution import actor_pool
from pipeline.execution.actor_pool import DIED, ActorPool
from pipeline.execution.blocks import Block, Intake
from pipeline.execution.flight_recorder import Station, recordings
from pipeline.execution.nodes import ClusterNode, nodes_alive
from pipeline.execution.operator import Report
from pipeline.execution.placement import Placement, unplaceable
from pipeline.execution.postmortem import Death, explain
from pipeline.execution.run_counts import AtWork, RunCounts
from pipeline.execution.schedule import Assignment, Schedule

_LOOK_S = 1.0  # how often to look at the cluster's nodes
_PROBE_S = 30.0  # how often to send something to workers that owe an answer
# Share of an object store that blocks may be charged with: an operator's input stays there until it is through with it,
# so that twice as much may lie there, and Ray begins to spill at 80 %.
_STORE_SHARE = 0.4


class NoNode(DataProblem):
    """No node has what an operator needs, and none has come in time."""


@dataclass(frozen=True)
class Limits:
    """What a run may do.

    Attributes:
        max_attempts: deaths of workers that a row may cause before it is set aside.
        wait_for_nodes_s: how long to wait for a node that an operator needs.
        grows: whether the cluster may get nodes while the run goes on.
    """

    max_attempts: int = 3
    wait_for_nodes_s: float = 0.0
    grows: bool = False


def stream(
    blocks: Iterator[pa.Table],
    pools: Sequence[ActorPool],
    placements: Sequence[Placement],
    counts: RunCounts,
    limits: Limits,
) -> Iterator[pa.Table]:
    """Put blocks through all operators; yields them as they leave the last one, in any order.

    Args:
        blocks: of rows with `row_id` and `uri`.
        pools: of the operators, in order, without workers yet.
        placements: of the operators, in the same order.
        counts: is told of rows that are through, of nodes, workers, deaths and repeats.
        limits: of the run.

    Raises:
        NoNode: an operator fits on no node.
        StageKillsWorkers: a stage does, whatever it is given.
        ray.exceptions.RayError: the cluster failed, or an operator did.
    """
    finished = False
    try:
        yield from _Execution(blocks, pools, placements, counts, limits).run()
        finished = True
    finally:
        counts.look = list
        for pool in pools:
            if finished:
                pool.release()
            elif ray.is_initialized():  # else they have ended with the connection
                pool.kill()


@dataclass
class _Task:
    """A block that a worker has, and what comes of it."""

    operator: int
    worker: ActorHandle
    station: Station
    block: Block
    output: ObjectRef


class _Execution:
    def __init__(
        self,
        blocks: Iterator[pa.Table],
        pools: Sequence[ActorPool],
        placements: Sequence[Placement],
        counts: RunCounts,
        limits: Limits,
    ) -> None:
        self.pools, self.placements, self.counts, self.limits = pools, placements, counts, limits
        self.intake = Intake(blocks, counts.deaths)
        self.schedule: Schedule[Block, ActorHandle] = Schedule([p.depth for p in pools], self.intake.next_block)
        self.tasks: dict[ObjectRef, _Task] = {}
        self.deaths: dict[ActorHandle, Death | None] = {}
        self.nodes: Mapping[str, ClusterNode] = {}
        self.looked_at = float("-inf")
        self.probed_at = time.monotonic()
        self.lacking_since: float | None = None

    def run(self) -> Iterator[pa.Table]:
        actor_pool.end_idle({pool.claims for pool in self.pools})
        self.counts.look = self.at_work
        while True:
            if time.monotonic() - self.looked_at >= _LOOK_S:
                self.look_at_cluster()
            if time.monotonic() - self.probed_at >= _PROBE_S:
                self.probe()
            for assignment in self.schedule.assignments():
                self.hand_out(assignment)
            if self.intake.is_empty and not self.schedule.in_flight:
                return
            for done in self.wait():
                if (task := self.tasks.pop(done, None)) is not None:
                    yield from self.take_result(done, task)
                else:
                    self.add_worker(done)

    def wait(self) -> list[ObjectRef]:
        """Workers that have come up and blocks that are through, within a second or so; may be none."""
        refs = [*(ready for pool in self.pools for ready in pool.starting), *self.tasks]
        if not refs:
            time.sleep(_LOOK_S)
            return []
        done, others = ray.wait(refs, num_returns=1, timeout=_LOOK_S, fetch_local=False)
        if done and others:  # whatever else there is as well, or a thousand workers are a thousand calls of this
            more, _ = ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)
            done = [*done, *more]
        return done

    def probe(self) -> None:
        """Send a little something to every worker that owes an answer.

        While the network is away for half a minute, a worker that cannot get rid of its answer drops the connection,
        and the answer with it. This end does not learn of that before it sends something; by itself it does so
        every five minutes only (Ray's `grpc_client_keepalive_time_ms`).
        """
        self.probed_at = time.monotonic()
        starting = {worker for pool in self.pools for worker in pool.starting.values()}
        for worker in starting | {task.worker for task in self.tasks.values()}:
            worker.ready.remote()  # answered when its turn comes; nobody waits for it

    def look_at_cluster(self) -> None:
        """Follow the nodes: budgets, lost blocks, workers to start and to retire."""
        self.looked_at = time.monotonic()
        nodes = nodes_alive()
        for left in self.nodes.keys() - nodes.keys():
            self.lose(self.nodes[left])
        for node in nodes.values():
            if node.id not in self.nodes:
                self.counts.event("node_found", node=node.name, id=node.id, cpus=node.cpus, gpus=node.gpus)
                self.schedule.set_budget(node.id, int(node.store_bytes * _STORE_SHARE))
        self.nodes = nodes
        for number in range(len(self.pools)):
            self.resize(number)
        self.check_patience()
        self.counts.nodes = len(nodes)
        self.counts.workers = sum(len(pool.workers) for pool in self.pools)
        self.counts.bytes_in_flight = self.schedule.held_bytes
        self.counts.queued = [self.schedule.waiting(number) for number in range(len(self.pools))]
        self.counts.publish()

    def lose(self, node: ClusterNode) -> None:
        """A node is gone. Blocks that its workers had come back with an error each; those that waited there do not."""
        self.counts.nodes_lost.append(node.name)
        self.counts.event("node_lost", node=node.name, id=node.id)
        for number, pool in enumerate(self.pools):
            for worker in [worker for worker, station in pool.workers.items() if station.node == node.id]:
                self.schedule.remove_worker(number, worker)
                pool.remove(worker)
        for block in self.schedule.lose_node(node.id):
            self.repeat(block)

    def resize(self, number: int) -> None:
        """Start and retire workers of an operator."""
        pool, placement = self.pools[number], self.placements[number]
        for worker, station in list(pool.workers.items()):
            if station.node in self.nodes and self.nodes[station.node].is_leaving:
                self.retire(number, worker)
        size = placement.size(self.nodes.values())
        if self.limits.grows and not self.intake.is_empty:
            size += placement.pending(len(pool.workers))
        for worker in pool.resize(size, self.nodes):
            self.schedule.add_worker(number, worker, pool.workers[worker].node)

    def retire(self, number: int, worker: ActorHandle) -> None:
        """End a worker as soon as it has no block."""
        self.schedule.retire(number, worker)
        if not self.schedule.load(number, worker):
            self.schedule.remove_worker(number, worker)
            self.pools[number].remove(worker)

    def check_patience(self) -> None:
        """Wait for nodes that operators need, but not for ever.

        Raises:
            NoNode: for longer than allowed.
        """
        lacking = [i for i in unplaceable(self.placements, self.nodes.values()) if not self.pools[i].workers]
        self.counts.lacking = ", ".join(_needs(self.placements[i]) for i in lacking)
        if not lacking:
            self.lacking_since = None
            return
        self.lacking_since = self.lacking_since or time.monotonic()
        if time.monotonic() - self.lacking_since >= self.limits.wait_for_nodes_s:
            stages = ", ".join(self.pools[i].first_stage for i in lacking)
            raise NoNode(
                f"no node of the cluster has {self.counts.lacking}, which the operators of {stages} need; none has "
                f"come within {self.limits.wait_for_nodes_s:g} s. Add such a node, or let a run wait longer with "
                "--set resources.wait_for_nodes_s=SECONDS"
            )

    def add_worker(self, ready: ObjectRef) -> None:
        """A worker has come up, unless it died before it did."""
        number = next(i for i, pool in enumerate(self.pools) if ready in pool.starting)
        pool = self.pools[number]
        worker = pool.arrived(ready)
        if worker is None:
            self.resize(number)
            return
        node = pool.workers[worker].node
        if node not in self.nodes:
            self.look_at_cluster()
        if len(pool.workers) > self.placements[number].size(self.nodes.values()):
            pool.remove(worker)  # it took the place of another operator's worker that had died
            return
        self.schedule.add_worker(number, worker, node)

    def hand_out(self, assignment: Assignment[Block, ActorHandle]) -> None:
        block, pool = assignment.block, self.pools[assignment.operator]
        fates = self.counts.deaths.fates(block.row_ids)
        given = block.rows if block.output is None else block.output
        report, output = assignment.worker.work.remote([pool.job], given, fates)  # type: ignore[var-annotated]
        station = pool.workers[assignment.worker]
        self.tasks[report] = _Task(assignment.operator, assignment.worker, station, block, output)

    def take_result(self, done: ObjectRef, task: _Task) -> Iterator[pa.Table]:
        """A worker is through with a block, or dead."""
        pool = self.pools[task.operator]
        is_last = task.operator + 1 == len(self.pools)
        try:
            report: Report = ray.get(done)
            rows = ray.get(task.output) if is_last else None
        except DIED as error:
            self.handle_death(task, error)
            return
        except ObjectLostError:  # its node is gone, with what an operator had made of it
            self.schedule.drop(task.block)
            self.repeat(task.block)
            return
        pool.stillborn = 0
        self.counts.passed(report)
        task.block.output = task.output
        if self.schedule.finish(task.block, report.size):
            self.intake.leave(task.block)
            self.counts.finished(report)
            assert rows is not None
            yield rows

    def repeat(self, block: Block) -> None:
        """A block enters again, through no fault of its own."""
        self.counts.repeated += 1
        self.intake.repeat(block)

    def handle_death(self, task: _Task, error: RayError) -> None:
        """A worker died with this block: blame the rows of it that it was working on, if there are any."""
        block = task.block
        if task.worker not in self.deaths:
            self.deaths[task.worker] = self.death(task, error)
            self.schedule.remove_worker(task.operator, task.worker)
            self.pools[task.operator].remove(task.worker)
            self.counts.died += 1
            self.resize(task.operator)
        self.schedule.drop(block)
        death = self.deaths[task.worker]
        at_work = [row_id for row_id in block.row_ids if death and row_id in death.row_ids]
        if death is None or not at_work:
            self.repeat(block)
            return
        self.deaths[task.worker] = None  # counted; the other blocks that it had were only waiting
        self.counts.deaths.count(replace(death, row_ids=tuple(at_work)), self.limits.max_attempts, block.uris(at_work))
        self.counts.repeated += 1
        self.intake.blame(block, at_work, death)

    def death(self, task: _Task, error: RayError) -> Death | None:
        """What the worker died of; None if it had not begun a block."""
        pool = self.pools[task.operator]
        # A node that is gone is not asked: Ray takes ten seconds to give up, for each worker that was there.
        (left,) = recordings([task.station]) if task.station.node in nodes_alive() else (None,)
        if left is not None:
            self.counts.deaths.passed.update(left.passed)
        death = explain(left, error, (pool.first_stage, task.block.row_ids))
        self.counts.event("worker_died", stage=death.stage, rows=list(death.row_ids), cause=str(death))
        if not death.row_ids:
            pool.lost_early(error)
            return None
        return death

    def at_work(self) -> list[AtWork]:
        """What the workers are doing just now, the longest first; called from the display's thread."""
        tasks = list(self.tasks.values())
        stations = {task.worker: task.station for task in tasks}
        found = [said for said in recordings([*stations.values()], timeout_s=5) if said and said.stage]
        found.sort(key=lambda said: -said.for_s)
        oldest = found[0].row_ids[:1] if found else ()
        uri = next((uri for task in tasks for uri in task.block.uris(oldest).values()), "")
        return [AtWork(said.stage, said.for_s, "" if i else uri) for i, said in enumerate(found)]


def _needs(placement: Placement) -> str:
    return f"{placement.claims.gpus:g} GPU" if placement.claims.gpus else "a CPU"
