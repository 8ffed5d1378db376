"""Blocks of rows, and which of them sets out next."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from ray import ObjectRef

from pipeline.execution.postmortem import Death
from pipeline.execution.worker_deaths import Deaths


@dataclass(eq=False)
class Block:
    """A block of rows on its way through the operators.

    Attributes:
        rows: as it enters the first operator, every time it has to.
        output: of the last operator, in the object store; None before the first.
        death: of a worker, caused by its only row in a stage that no row had passed.
    """

    rows: pa.Table
    output: ObjectRef | None = None
    death: Death | None = None

    @property
    def row_ids(self) -> list[str]:
        """Its rows."""
        return self.rows["row_id"].to_pylist()

    def uris(self, row_ids: Sequence[str]) -> dict[str, str]:
        """Row id -> URI, of some of its rows."""
        rows = self.rows.filter(pc.is_in(self.rows["row_id"], pa.array(row_ids, pa.string())))
        return dict(zip(rows["row_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))

    def without(self, row_ids: Sequence[str]) -> Iterator["Block"]:
        """A block of its other rows, if there are any."""
        rest = self.rows.filter(pc.invert(pc.is_in(self.rows["row_id"], pa.array(row_ids, pa.string()))))
        return iter([Block(rest)] if rest.num_rows else [])

    def each(self, row_ids: Sequence[str], death: Death | None) -> Iterator["Block"]:
        """Some of its rows, each a block of its own."""
        for i, row_id in enumerate(self.row_ids):
            if row_id in row_ids:
                yield Block(self.rows.slice(i, 1), death=death)


class Intake:
    """Decides which block enters next: one that has to be repeated, a fresh one, at last a suspect.

    A suspect is a single row that has killed a worker in a stage that no row has passed yet. It waits until all other
    blocks have had their turn, for they decide whether the row or the stage is to blame.
    """

    def __init__(self, fresh: Iterator[pa.Table], deaths: Deaths) -> None:
        self._fresh = map(Block, fresh)
        self._deaths = deaths
        self._again: deque[Block] = deque()
        self._suspects: list[Block] = []
        self._out: set[Block] = set()  # those that have entered, other than suspects
        self._is_exhausted = False

    @property
    def is_empty(self) -> bool:
        """Whether no block will enter any more, unless one of those that have entered has to be repeated."""
        return self._is_exhausted and not (self._again or self._suspects)

    def repeat(self, block: Block) -> None:
        """A block's bytes were lost, or its worker was and it is not to blame: it has to enter again."""
        self.leave(block)
        self._again.append(Block(block.rows, death=block.death))

    def blame(self, block: Block, row_ids: Sequence[str], death: Death) -> None:
        """These of a block's rows may have killed the worker that had it; its others enter again as they are."""
        self.leave(block)
        self._again.extend(block.without(row_ids))
        if self._deaths.is_open(death):
            self._suspects.extend(block.each(row_ids, death))
        else:
            self._again.extend(block.each(row_ids, None))

    def leave(self, block: Block) -> None:
        """A block is through, or has to be repeated."""
        self._out.discard(block)

    def next_block(self) -> Block | None:
        """The block that enters next; None if there is none at the moment.

        Raises:
            StageKillsWorkers: only suspects are left, and the stage is to blame.
        """
        self._release_cleared()
        block = self._again.popleft() if self._again else next(self._fresh, None)
        if block is None:
            self._is_exhausted = True
            block = self._suspect()
        if block is not None and block.death is None:
            self._out.add(block)
        return block

    def _release_cleared(self) -> None:
        """A row has passed the stage since, so that the stage works: its suspects are rows like any other."""
        cleared = [block for block in self._suspects if block.death and not self._deaths.is_open(block.death)]
        self._suspects = [block for block in self._suspects if block not in cleared]
        self._again.extend(Block(block.rows) for block in cleared)

    def _suspect(self) -> Block | None:
        if self._out or not self._suspects:
            return None
        block = self._suspects.pop(0)
        if block.death:
            self._deaths.check_given_up(block.death, block.row_ids[0], block.uris(block.row_ids))
        return block
