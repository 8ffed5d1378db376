"""The way of blocks through workers that die, on a cluster that is only played: whatever dies when, and in which order
answers come, every row comes out once and those that killed their workers are the ones that failed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError

from pipeline import crew
from pipeline.crew import Crew, stream
from pipeline.deaths import Fate, StageKillsWorkers
from pipeline.flight_recorder import Recording, Station
from pipeline.operator import Report
from pipeline.tally import Tally
from schemas import columns

SCHEMA = pa.schema([("row_id", pa.string()), ("uri", pa.string()), ("verdict", columns.VERDICT)])


class Ref:
    """An answer, or the error that comes in its place."""

    def __init__(self, value: Any) -> None:
        self.value = value


class PlayedWorker:
    """Puts rows through one stage, some at a time; dies on those that kill."""

    def __init__(self, killers: frozenset[str], batch: int) -> None:
        self.killers, self.batch = killers, batch
        self.left = Recording()
        self.is_dead = False
        self.ready = SimpleNamespace(remote=lambda: Ref(Station("here", self)))
        self.work = SimpleNamespace(remote=self._work)

    def _work(self, job: Any, given: Any, fates: Mapping[str, Fate]) -> tuple[Ref, Ref]:
        rows = (given.value if isinstance(given, Ref) else given).to_pylist()
        passed: Counter[str] = Counter()
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            live = [row["row_id"] for row in part if not _told(row, fates)]
            if not self.is_dead and self.killers & {*live}:
                self.is_dead = True
                self.left = Recording("s", tuple(live), passed=dict(passed), crash="Fatal Python error: Aborted")
            passed["s"] += len(live)
        if self.is_dead:
            return Ref(ActorDiedError()), Ref(ActorDiedError())
        status = Counter(row["verdict"]["status"] for row in rows)
        return Ref(Report(passed, status, 0.0)), Ref(pa.Table.from_pylist(rows, SCHEMA))


def _told(row: dict[str, Any], fates: Mapping[str, Fate]) -> bool:
    """Write a row's fate down; whether it is set aside."""
    fate = fates.get(row["row_id"])
    row["verdict"]["attempts"] = fate.attempts if fate else 1
    if fate and fate.message:
        row["verdict"]["status"] = "failed"
    return row["verdict"]["status"] == "failed"


@contextmanager
def played(random: Random, killers: frozenset[str], batch: int) -> Iterator[None]:
    """In place of Ray, one whose answers come in any order."""

    def get(ref: Ref) -> Any:
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def wait(refs: Sequence[Any], **_: Any) -> Any:
        return [random.choice(refs)], []

    def found(stations: Sequence[Station]) -> list[Recording]:
        return [station.path.left for station in stations]  # type: ignore[attr-defined]

    hire = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: PlayedWorker(killers, batch)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crew, "Worker", hire)
        patch.setattr(crew, "recordings", found)
        patch.setattr(crew, "_idle", {})
        for name, function in {"get": get, "wait": wait, "kill": id, "is_initialized": lambda: True}.items():
            patch.setattr(crew.ray, name, function)
        yield


@given(
    killers=st.frozensets(st.sampled_from("abcdefghijkl"), max_size=5),
    rows=st.integers(1, 12),
    per_block=st.integers(1, 5),
    batch=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    max_attempts=st.integers(1, 3),
    random=st.randoms(use_true_random=False),
)
def test_every_row_comes_out_once_and_only_the_guilty_fail(
    killers, rows, per_block, batch, sizes, max_attempts, random
):
    ids = "abcdefghijkl"[:rows]
    verdict = {"status": "kept", "stage": None, "reason": None, "message": None, "attempts": 0}
    table = pa.Table.from_pylist([{"row_id": i, "uri": f"{i}.flac", "verdict": verdict} for i in ids], SCHEMA)
    blocks = (table.slice(start, per_block) for start in range(0, rows, per_block))
    guilty = killers & {*ids}
    tally = Tally()
    with played(random, killers, batch):
        crews = [Crew("job", "s", (1.0, 0.0), 1 + i, size) for i, size in enumerate(sizes)]
        try:
            out = [row for block in stream(blocks, crews, tally, max_attempts) for row in block.to_pylist()]
        except StageKillsWorkers:
            assert len(guilty) > 1
            assert not tally.deaths.passed["s"]
            return
    assert sorted(row["row_id"] for row in out) == list(ids)
    assert {row["row_id"] for row in out if row["verdict"]["status"] == "failed"} == guilty
    assert all(row["verdict"]["attempts"] == (max_attempts if row["row_id"] in guilty else 1) for row in out)
    assert tally.done == rows
