"""Which block goes to which worker next: a state machine that knows neither Ray nor the time.

Blocks pass the operators in order. An operator's output stays on the node that made it until a worker of the next
operator takes it, so that blocks prefer workers of that node, and a node takes in new blocks only while its budget of
bytes has room for them. Every event and every assignment costs the same, however many workers and blocks there are.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

B = TypeVar("B", bound=Hashable)  # a block
W = TypeVar("W", bound=Hashable)  # a worker

_QUEUE = 2  # blocks that wait before an operator for each of its workers; with more, the operator before it pauses


@dataclass(frozen=True)
class Assignment(Generic[B, W]):
    """A block that a worker of an operator is to work on now."""

    operator: int
    worker: W
    block: B


@dataclass
class _Flight(Generic[W]):
    """Where a block is.

    Attributes:
        operator: that has it or is next to have it.
        node: which holds its bytes, or will; they are charged to its budget.
        charge: that many bytes.
        size: of what the last operator made of it; 0 before the first.
        worker: that works on it; None while it waits.
    """

    operator: int
    node: str
    charge: int
    size: int = 0
    worker: W | None = None


@dataclass
class _Budget:
    """Bytes of a node's object store that blocks may take, and those that are charged to it."""

    limit: int = 0
    charged: int = 0

    def takes(self, size: int) -> bool:
        """Whether another block of this size may enter; one always may, or a large one never would."""
        return self.charged == 0 or self.charged + size <= self.limit


class Schedule(Generic[B, W]):
    """The blocks in flight and the workers of all operators.

    Args:
        depths: of each operator, how many blocks one of its workers may have at a time.
        next_block: gives the next block that is to enter; None if there is none at the moment.
    """

    def __init__(self, depths: Sequence[int], next_block: Callable[[], B | None]) -> None:
        self._next_block = next_block
        self._operators: list[_Operator[B, W]] = [_Operator(depth) for depth in depths]
        self._flights: dict[B, _Flight[W]] = {}
        self._budgets: defaultdict[str, _Budget] = defaultdict(_Budget)
        self._largest: int | None = None  # block so far; None before anything is known of their sizes

    @property
    def in_flight(self) -> int:
        """Blocks that have entered and neither left nor been dropped."""
        return len(self._flights)

    @property
    def held_bytes(self) -> int:
        """Bytes that blocks in flight are charged with, on all nodes."""
        return sum(budget.charged for budget in self._budgets.values())

    def waiting(self, operator: int) -> int:
        """Blocks that wait before an operator."""
        return len(self._operators[operator].queue)

    def workers(self, operator: int) -> int:
        """Workers that an operator has."""
        return len(self._operators[operator].members)

    def set_budget(self, node: str, limit: int) -> None:
        """A node has joined, or its object store has another size.

        Args:
            node: its id.
            limit: bytes that blocks in flight may take there.
        """
        self._budgets[node].limit = limit
        self._open_or_close(node)

    def add_worker(self, operator: int, worker: W, node: str) -> None:
        """A worker is ready for blocks."""
        self._operators[operator].add(worker, node)
        self._open_or_close(node)

    def retire(self, operator: int, worker: W) -> None:
        """Give this worker no more blocks; it keeps those that it has."""
        self._operators[operator].retire(worker)

    def load(self, operator: int, worker: W) -> int:
        """Blocks that a worker has; 0 for one that is gone."""
        members = self._operators[operator].members
        return members[worker].load if worker in members else 0

    def remove_worker(self, operator: int, worker: W) -> None:
        """A worker is gone. Whoever removes it drops the blocks that it had."""
        self._operators[operator].remove(worker)

    def lose_node(self, node: str) -> list[B]:
        """A node is gone: the blocks that waited there are lost and have been dropped."""
        lost = [block for operator in self._operators for block in operator.queue.on(node)]
        for block in lost:
            self.drop(block)
        self._budgets[node].limit = 0
        return lost

    def drop(self, block: B) -> None:
        """A block's bytes or its worker are gone; it is no longer in flight, and may enter again."""
        flight = self._flights.pop(block)
        operator = self._operators[flight.operator]
        if flight.worker is None:
            operator.queue.remove(block, flight.node)
        else:
            operator.done(flight.worker)
        self._charge(flight.node, -flight.charge)

    def finish(self, block: B, size: int) -> bool:
        """A worker is through with a block.

        Args:
            block: which.
            size: bytes of what the operator made of it.

        Returns:
            Whether that was the last operator, so that the block is out.
        """
        flight = self._flights[block]
        operator = self._operators[flight.operator]
        assert flight.worker is not None
        node = operator.members[flight.worker].node if flight.worker in operator.members else flight.node
        operator.done(flight.worker)
        if flight.operator + 1 == len(self._operators):
            self._charge(flight.node, -flight.charge)
            del self._flights[block]
            return True
        self._largest = max(self._largest or 0, size)
        self._charge(flight.node, -flight.charge)
        after = _Flight[W](flight.operator + 1, node, max(size, self._largest), size)
        self._charge(node, after.charge)
        self._flights[block] = after
        self._operators[after.operator].queue.add(block, node)
        return False

    def assignments(self) -> Iterator[Assignment[B, W]]:
        """Everything that can be assigned now, the last operator first: blocks on their way out free memory."""
        for number in reversed(range(len(self._operators))):
            while (found := self._enter() if number == 0 else self._forward(number)) is not None:
                yield found

    def _forward(self, number: int) -> Assignment[B, W] | None:
        """A block that waits before an operator, and a free worker, both on one node if there are such."""
        operator = self._operators[number]
        if not operator.queue or self._is_full(number + 1):
            return None
        worker = operator.free()
        if worker is None:
            return None
        block = operator.queue.first(operator.members[worker].node)
        flight = self._flights[block]
        worker = operator.free(flight.node, at_most=operator.members[worker].load) or worker
        operator.queue.remove(block, flight.node)
        operator.take(worker)
        flight.worker = worker
        return Assignment(number, worker, block)

    def _enter(self) -> Assignment[B, W] | None:
        """A new block, and a free worker of the first operator on a node with room for it."""
        worker = None if self._is_full(1) else self._with_room()
        block = None if worker is None else self._next_block()
        if worker is None or block is None:
            return None
        first = self._operators[0]
        node = first.members[worker].node
        first.take(worker)
        flight = self._flights[block] = _Flight(0, node, self._expected(node), worker=worker)
        self._charge(node, flight.charge)
        return Assignment(0, worker, block)

    def _with_room(self) -> W | None:
        """A free worker on a node with room; blocks may have turned out larger since the node was last looked at."""
        first = self._operators[0]
        while (worker := first.free()) is not None:
            node = first.members[worker].node
            if self._budgets[node].takes(self._expected(node)):
                return worker
            first.set_open(node, is_open=False)
        return None

    def _is_full(self, number: int) -> bool:
        """Whether so many blocks wait before an operator that the one before it had better pause."""
        if number >= len(self._operators):
            return False
        operator = self._operators[number]
        return len(operator.queue) >= _QUEUE * max(1, len(operator.members))

    def _expected(self, node: str) -> int:
        """Bytes that a block entering on a node is expected to take: as the largest so far, at first all there are."""
        if len(self._operators) == 1:
            return 0  # its output goes to the driver and does not stay
        return self._budgets[node].limit if self._largest is None else self._largest

    def _charge(self, node: str, size: int) -> None:
        self._budgets[node].charged += size
        self._open_or_close(node)

    def _open_or_close(self, node: str) -> None:
        """A node whose budget is used up takes in no new blocks."""
        self._operators[0].set_open(node, is_open=self._budgets[node].takes(self._expected(node)))


@dataclass
class _Member:
    node: str
    load: int = 0
    is_retired: bool = False


class _Queue(Generic[B]):
    """Blocks that wait: first come, first served, of all nodes or of one."""

    def __init__(self) -> None:
        self._all: dict[B, None] = {}
        self._on: defaultdict[str, dict[B, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, block: B, node: str) -> None:
        self._all[block] = self._on[node][block] = None

    def remove(self, block: B, node: str) -> None:
        del self._all[block]
        del self._on[node][block]

    def on(self, node: str) -> list[B]:
        return list(self._on[node])

    def first(self, node: str) -> B:
        """The one that has waited longest on a node; of all nodes if none waits there."""
        return next(iter(self._on[node] or self._all))


@dataclass
class _Free(Generic[W]):
    """Workers that may have another block, by how many they have and by node."""

    depth: int
    levels: list[dict[str, dict[W, None]]] = field(init=False)

    def __post_init__(self) -> None:
        self.levels = [{} for _ in range(self.depth)]

    def add(self, worker: W, member: _Member) -> None:
        if member.load < self.depth:
            self.levels[member.load].setdefault(member.node, {})[worker] = None

    def discard(self, worker: W, member: _Member) -> None:
        level = self.levels[member.load] if member.load < self.depth else {}
        if worker in level.get(member.node, {}):
            del level[member.node][worker]
            if not level[member.node]:
                del level[member.node]

    def find(self, node: str | None, at_most: int) -> W | None:
        """The one with least to do, of any node or of one."""
        for level in self.levels[: at_most + 1]:
            there = next(iter(level.values()), None) if node is None else level.get(node)
            if there:
                return next(iter(there))
        return None

    def hand_over(self, node: str, other: "_Free[W]") -> None:
        """Move the workers of a node."""
        for own, others in zip(self.levels, other.levels, strict=True):
            others.setdefault(node, {}).update(own.pop(node, {}))
            if not others[node]:
                del others[node]


class _Operator(Generic[B, W]):
    """An operator's workers and the blocks that wait for them."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.queue: _Queue[B] = _Queue()
        self.members: dict[W, _Member] = {}
        self._open: _Free[W] = _Free(depth)
        self._shut: _Free[W] = _Free(depth)
        self._shut_nodes: set[str] = set()

    def add(self, worker: W, node: str) -> None:
        self.members[worker] = _Member(node)
        self._side(node).add(worker, self.members[worker])

    def remove(self, worker: W) -> None:
        if worker in self.members:
            member = self.members.pop(worker)
            self._side(member.node).discard(worker, member)

    def retire(self, worker: W) -> None:
        if worker in self.members:
            member = self.members[worker]
            self._side(member.node).discard(worker, member)
            member.is_retired = True

    def free(self, node: str | None = None, at_most: int | None = None) -> W | None:
        """A worker of an open node that may have another block."""
        return self._open.find(node, self.depth - 1 if at_most is None else at_most)

    def take(self, worker: W) -> None:
        self._reload(worker, 1)

    def done(self, worker: W) -> None:
        if worker in self.members:  # it may have gone since
            self._reload(worker, -1)

    def set_open(self, node: str, *, is_open: bool) -> None:
        if is_open and node in self._shut_nodes:
            self._shut_nodes.remove(node)
            self._shut.hand_over(node, self._open)
        elif not is_open and node not in self._shut_nodes:
            self._shut_nodes.add(node)
            self._open.hand_over(node, self._shut)

    def _reload(self, worker: W, blocks: int) -> None:
        member = self.members[worker]
        side = self._side(member.node)
        side.discard(worker, member)
        member.load += blocks
        if not member.is_retired:
            side.add(worker, member)

    def _side(self, node: str) -> _Free[W]:
        return self._shut if node in self._shut_nodes else self._open
