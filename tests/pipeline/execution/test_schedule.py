"""The schedule alone: no Ray, no time; a simulation whose workers and nodes come and go as hypothesis likes."""

import heapq
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.execution.schedule import Assignment, Schedule

MB = 2**20


class Simulation:
    """A cluster in which workers finish in any order, and workers and nodes come and go at any time."""

    def __init__(self, random: Random, depths: list[int], blocks: int, budget: int, largest: int) -> None:
        self.random, self.operators = random, len(depths)
        self.budget, self.largest = budget, largest
        self.schedule: Schedule[int, int] = Schedule(depths, self.next_block)
        self.fresh: Iterator[int] = iter(range(blocks))
        self.again: list[int] = []
        self.working: dict[int, Assignment[int, int]] = {}  # block -> who has it
        self.bytes_on: Counter[str] = Counter()
        self.node_of: dict[int, str] = {}  # worker -> node
        self.operator_of: dict[int, int] = {}
        self.nodes: set[str] = set()
        self.out: Counter[int] = Counter()
        self.born = 0

    def next_block(self) -> int | None:
        return self.again.pop() if self.again else next(self.fresh, None)

    def join(self) -> None:
        self.born += 1
        node = f"node{self.born}"
        self.nodes.add(node)
        self.schedule.set_budget(node, self.budget)
        for operator in range(self.operators):
            for _ in range(self.random.randint(1, 3)):
                self.hire(operator, node)

    def hire(self, operator: int, node: str) -> None:
        self.born += 1
        self.node_of[self.born], self.operator_of[self.born] = node, operator
        self.schedule.add_worker(operator, self.born, node)

    def kill(self, worker: int) -> None:
        operator = self.operator_of.pop(worker)
        self.schedule.remove_worker(operator, worker)
        for block in [block for block, task in self.working.items() if task.worker == worker]:
            self.set_out_again(block)
        del self.node_of[worker]

    def leave(self, node: str) -> None:
        for worker in [worker for worker, on in self.node_of.items() if on == node]:
            self.kill(worker)
        self.again.extend(self.schedule.lose_node(node))
        self.nodes.remove(node)

    def set_out_again(self, block: int) -> None:
        del self.working[block]
        self.schedule.drop(block)
        self.again.append(block)

    def assign(self) -> None:
        for assignment in self.schedule.assignments():
            assert assignment.block not in self.working
            assert self.operator_of[assignment.worker] == assignment.operator
            self.working[assignment.block] = assignment

    def finish(self) -> None:
        block = self.random.choice(list(self.working))
        del self.working[block]
        if self.schedule.finish(block, self.random.randint(1, self.largest)):
            self.out[block] += 1

    def disturb(self) -> None:
        """Something happens to the cluster, which never loses its last node for good."""
        what = self.random.choice(["join", "leave", "kill", "hire", "lost bytes"])
        if what == "join" or not self.nodes:
            self.join()
        elif what == "leave":
            self.leave(self.random.choice(sorted(self.nodes)))
        elif what == "kill" and self.node_of:
            self.kill(self.random.choice(list(self.node_of)))
        elif what == "hire":
            self.hire(self.random.randrange(self.operators), self.random.choice(sorted(self.nodes)))
        elif what == "lost bytes" and self.working:
            self.set_out_again(self.random.choice(list(self.working)))


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 40))
def test_whatever_happens_to_the_cluster_every_block_comes_out_once(random, depths, blocks):
    simulation = Simulation(random, depths, blocks, budget=random.choice([1, 50, 10_000]), largest=100)
    for _ in range(random.randint(0, 100)):
        if random.random() < 0.3:
            simulation.disturb()
        simulation.assign()
        if simulation.working and random.random() < 0.8:
            simulation.finish()
    simulation.join()  # from here on nothing happens any more: what is left must come through
    simulation.assign()
    while simulation.working:
        simulation.finish()
        simulation.assign()
    assert simulation.out == Counter(range(blocks))
    assert (simulation.schedule.in_flight, simulation.schedule.held_bytes) == (0, 0)


@settings(max_examples=50)
@given(st.randoms(use_true_random=False), st.integers(2, 4))
def test_a_node_never_holds_more_than_its_budget_once_the_size_of_blocks_is_known(random, operators):
    simulation = Simulation(random, [1] * operators, 60, budget=500, largest=100)
    schedule = simulation.schedule
    simulation.join()
    simulation.assign()
    held = []
    while simulation.working:
        simulation.finish()
        simulation.assign()
        held.append(schedule.held_bytes)
    assert simulation.out == Counter(range(60))
    assert max(held) <= 500 + operators * 3 * 100  # blocks that entered before larger ones were seen count more later


def test_a_node_without_room_takes_nothing_in_until_a_block_has_left_it():
    blocks = iter("abc")
    schedule: Schedule[str, str] = Schedule([1, 1], lambda: next(blocks, None))
    schedule.set_budget("n", 250)
    for worker in ("w1", "w2", "w3"):
        schedule.add_worker(0, worker, "n")
    assert [one.block for one in schedule.assignments()] == ["a"]  # nothing is known of their size
    assert not schedule.finish("a", 100)
    assert [one.block for one in schedule.assignments()] == ["b"]
    assert not schedule.finish("b", 130)  # all would be larger than was thought
    assert not list(schedule.assignments())
    schedule.add_worker(1, "x", "n")
    assert [(one.operator, one.block) for one in schedule.assignments()] == [(1, "a")]
    assert schedule.finish("a", 0)
    assert [(one.operator, one.block) for one in schedule.assignments()] == [(1, "b")]
    assert schedule.finish("b", 0)
    assert [one.block for one in schedule.assignments()] == ["c"]


def test_a_block_larger_than_the_whole_budget_goes_through_alone():
    blocks = iter("ab")
    schedule: Schedule[str, str] = Schedule([1, 1], lambda: next(blocks, None))
    schedule.set_budget("n", 10)
    for operator in (0, 1):
        schedule.add_worker(operator, f"w{operator}", "n")
    out = []
    for _ in range(4):
        (one,) = schedule.assignments()
        out += [one.block] if schedule.finish(one.block, 1000) else []
    assert out == ["a", "b"]


def two_blocks_on_two_nodes() -> tuple[Schedule[str, str], dict[str, str]]:
    """Blocks that wait before the second operator, which has no worker yet: block -> node."""
    blocks = iter("ab")
    schedule: Schedule[str, str] = Schedule([1, 1], lambda: next(blocks, None))
    schedule.set_budget("n", 10**6)
    schedule.set_budget("m", 10**6)
    schedule.add_worker(0, "n", "n")
    schedule.add_worker(0, "m", "m")
    on = {one.block: one.worker for one in list(schedule.assignments())}
    for block in on:
        schedule.finish(block, 10)
    return schedule, on


def test_blocks_go_to_workers_where_their_bytes_are():
    schedule, on = two_blocks_on_two_nodes()
    schedule.add_worker(1, "m", "m")
    schedule.add_worker(1, "n", "n")
    assert {one.block: one.worker for one in schedule.assignments()} == on


def test_a_block_rather_moves_to_another_node_than_waits_for_a_worker_on_its_own():
    schedule, on = two_blocks_on_two_nodes()
    schedule.add_worker(1, "n", "n")
    schedule.add_worker(1, "n too", "n")
    assert sorted(one.block for one in schedule.assignments()) == sorted(on)


def test_a_retired_worker_gets_no_more_blocks_and_keeps_those_it_has():
    blocks = iter("ab")
    schedule: Schedule[str, str] = Schedule([2], lambda: next(blocks, None))
    schedule.set_budget("n", 1)
    schedule.add_worker(0, "w", "n")
    first = next(schedule.assignments())
    schedule.retire(0, "w")
    assert not list(schedule.assignments())
    assert schedule.load(0, "w") == 1
    assert schedule.finish(first.block, 0)
    assert schedule.load(0, "w") == 0
    assert not list(schedule.assignments())


@pytest.mark.parametrize("blocks", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_thousand_workers_take_blocks_through_two_operators(blocks):
    fresh = iter(range(blocks))
    schedule: Schedule[int, int] = Schedule([1, 2], lambda: next(fresh, None))
    for node in range(50):
        schedule.set_budget(str(node), 64 * 70 * MB)
        for worker in range(16):
            schedule.add_worker(0, node * 100 + worker, str(node))
        for worker in range(16, 20):
            schedule.add_worker(1, node * 100 + worker, str(node))
    random, now, events, out, largest = Random(0), 0.0, [], 0, 0
    while True:
        for one in schedule.assignments():
            seconds = random.expovariate(1.0) / (4 if one.operator else 1)
            heapq.heappush(events, (now + seconds, one.block))
        if not events:
            break
        now, block = heapq.heappop(events)
        out += schedule.finish(block, 70 * MB)
        largest = max(largest, schedule.held_bytes)
    assert out == blocks
    assert largest <= 50 * 64 * 70 * MB
    assert now < 1.05 * blocks / 800 + 20  # the operators keep each other at work; the last blocks may take long
