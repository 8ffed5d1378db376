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

from pipeline.execution import actor_pool
from pipeline.execution.actor_pool import ActorPool, stream
from pipeline.execution.fate import Fate
from pipeline.execution.flight_recorder import Recording, Station
from pipeline.execution.operator import Report
from pipeline.execution.run_counts import RunCounts
from pipeline.execution.worker_deaths import StageKillsWorkers
from schemas import columns

SCHEMA = pa.schema([("row_id", pa.string()), ("uri", pa.string()), ("verdict", columns.VERDICT)])


class Ref:
    """An answer, or the error that comes in its place."""

    def __init__(self, value: Any) -> None:
        self.value = value


class PlayedWorker:
    """Puts rows through one stage, some at a time; dies on those that kill there."""

    def __init__(self, killers: Mapping[str, int], batch: int) -> None:
        self.killers, self.batch = killers, batch
        self.left = Recording()
        self.is_dead = False
        self.ready = SimpleNamespace(remote=lambda: Ref(Station("here", self)))
        self.work = SimpleNamespace(remote=self._work)

    def _work(self, job: Any, given: Any, fates: Mapping[str, Fate]) -> tuple[Ref, Ref]:
        rows = (given.value if isinstance(given, Ref) else given).to_pylist()
        stage, passed = f"s{job[0]}", Counter[str]()
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            live = [row["row_id"] for row in part if not _told(row, stage, fates)]
            if not self.is_dead and any(self.killers.get(row_id) == job[0] for row_id in live):
                self.is_dead = True
                self.left = Recording(stage, tuple(live), passed=dict(passed), crash="Fatal Python error: Aborted")
            passed[stage] += len(live)
        if self.is_dead:
            return Ref(ActorDiedError()), Ref(ActorDiedError())
        status = Counter(row["verdict"]["status"] for row in rows)
        return Ref(Report(passed, status, 0.0)), Ref(pa.Table.from_pylist(rows, SCHEMA))


def _told(row: dict[str, Any], stage: str, fates: Mapping[str, Fate]) -> bool:
    """Write a row's fate down; whether it is set aside."""
    fate = fates.get(row["row_id"])
    row["verdict"]["attempts"] = fate.attempts if fate else 1
    if fate and fate.stage == stage:
        row["verdict"]["status"] = "failed"
    return row["verdict"]["status"] == "failed"


@contextmanager
def played(random: Random, killers: Mapping[str, int], batch: int) -> Iterator[None]:
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
        patch.setattr(actor_pool, "Worker", hire)
        patch.setattr(actor_pool, "recordings", found)
        patch.setattr(actor_pool, "_idle", {})
        for name, function in {"get": get, "wait": wait, "kill": id, "is_initialized": lambda: True}.items():
            patch.setattr(actor_pool.ray, name, function)
        yield


def _blocks(ids: str, per_block: int) -> Iterator[pa.Table]:
    verdict = {"status": "kept", "stage": None, "reason": None, "message": None, "attempts": 0}
    table = pa.Table.from_pylist([{"row_id": i, "uri": f"{i}.flac", "verdict": verdict} for i in ids], SCHEMA)
    return (table.slice(start, per_block) for start in range(0, len(ids), per_block))


@given(
    killers=st.dictionaries(st.sampled_from("abcdefghijkl"), st.integers(0, 1), max_size=5),
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
    guilty = {row_id for row_id in ids if killers.get(row_id, len(sizes)) < len(sizes)}
    counts = RunCounts()
    with played(random, killers, batch):
        pools = [ActorPool(i, f"s{i}", (1.0, 0.0), 1 + i, size) for i, size in enumerate(sizes)]
        try:
            came = [*stream(_blocks(ids, per_block), pools, counts, max_attempts)]
        except StageKillsWorkers as error:
            stage = next(stage for stage in ("s0", "s1") if repr(stage) in str(error))
            assert sum(f"s{killers[row_id]}" == stage for row_id in guilty) > 1
            assert not counts.deaths.passed[stage]
            return
    out = pa.concat_tables(came).to_pylist()
    assert len(guilty) < rows or rows == 1 or len(sizes) > 1  # of several, not all can fail in one stage
    assert sorted(row["row_id"] for row in out) == list(ids)
    assert {row["row_id"] for row in out if row["verdict"]["status"] == "failed"} == guilty
    assert all(row["verdict"]["attempts"] == (max_attempts if row["row_id"] in guilty else 1) for row in out)
    assert counts.done == rows


@given(rows=st.integers(2, 4), size=st.integers(1, 3), random=st.randoms(use_true_random=False))
def test_where_nobody_passes_nothing_comes_out(rows, size, random):
    ids = "abcd"[:rows]
    counts = RunCounts()
    with played(random, dict.fromkeys(ids, 0), 1), pytest.raises(StageKillsWorkers):
        list(stream(_blocks(ids, 1), [ActorPool(0, "s0", (1.0, 0.0), 1, size)], counts, 2))
    assert not counts.done
