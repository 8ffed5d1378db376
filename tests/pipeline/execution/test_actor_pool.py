"""The way of blocks through workers that die, on a cluster that is only played: whatever dies when, and in which order
answers come, every row comes out once and those that killed their workers are the ones that failed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, ObjectLostError

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
def played(random: Random, killers: Mapping[str, int], batch: int) -> Iterator[pytest.MonkeyPatch]:
    """In place of Ray, one whose answers come in any order."""

    def get(ref: Ref) -> Any:
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def wait(refs: Sequence[Any], **_: Any) -> Any:
        return [random.choice(refs)], []

    def found(stations: Sequence[Station]) -> list[Recording]:
        return [station.path.left for station in stations]  # type: ignore[attr-defined]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actor_pool, "Worker", _hiring(lambda: PlayedWorker(killers, batch)))
        patch.setattr(actor_pool, "recordings", found)
        patch.setattr(actor_pool, "_idle", {})
        for name, function in {"get": get, "wait": wait, "kill": id, "is_initialized": lambda: True}.items():
            patch.setattr(actor_pool.ray, name, function)
        yield patch


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


def _pool(number: int = 0, depth: int = 1, size: int = 2) -> ActorPool:
    return ActorPool(number, f"s{number}", (1.0, 0.0), depth, size)  # type: ignore[arg-type]


@given(lost=st.sets(st.sampled_from("abcdef")), random=st.randoms(use_true_random=False))
def test_what_was_lost_with_its_machine_is_made_again_and_no_row_is_blamed(lost, random):
    counts, still_lost = RunCounts(), set(lost)

    class Forgetful(PlayedWorker):
        def _work(self, job, given, fates):
            report, made = super()._work(job, given, fates)
            (row_id,) = made.value["row_id"].to_pylist()
            if job[0] == 1 and row_id in still_lost:
                still_lost.remove(row_id)
                return Ref(ObjectLostError("", None, "")), made
            return report, made

    with played(random, {}, 1) as patch:
        patch.setattr(actor_pool, "Worker", _hiring(lambda: Forgetful({}, 1)))
        came = [*stream(_blocks("abcdef", 1), [_pool(0), _pool(1)], counts, 1)]
    rows = pa.concat_tables(came).to_pylist()
    assert sorted(row["row_id"] for row in rows) == list("abcdef")
    assert {(row["verdict"]["status"], row["verdict"]["attempts"]) for row in rows} == {("kept", 1)}
    assert not still_lost


def test_workers_of_which_none_comes_to_life_end_the_pass():
    started = []

    def stillborn() -> SimpleNamespace:
        started.append(SimpleNamespace(ready=SimpleNamespace(remote=lambda: Ref(ActorDiedError()))))
        return started[-1]

    with played(Random(0), {}, 1) as patch:
        patch.setattr(actor_pool, "Worker", _hiring(stillborn))
        with pytest.raises(ActorDiedError):
            list(stream(_blocks("ab", 1), [_pool()], RunCounts(), 3))
    assert len(started) == 11  # two at once, and one for each of the first nine that ended


def test_workers_stay_for_the_next_pass_unless_it_fails_or_wants_others():
    started, killed = [], []

    def worker() -> PlayedWorker:
        started.append(PlayedWorker({}, 1))
        return started[-1]

    with played(Random(0), {}, 1) as patch:
        patch.setattr(actor_pool, "Worker", _hiring(worker))
        patch.setattr(actor_pool.ray, "kill", killed.append)
        for _ in range(2):
            assert len([*stream(_blocks("abcd", 1), [_pool()], RunCounts(), 3)]) == 4
        assert (len(started), killed) == (2, [])
        on_a_gpu = ActorPool(0, "s0", (0.0, 1.0), 1, 1)  # type: ignore[arg-type]
        assert len([*stream(_blocks("ab", 1), [on_a_gpu], RunCounts(), 3)]) == 2
        assert killed == started[:2]  # in whose place the other one comes
        halfway = stream(_blocks("ab", 1), [ActorPool(0, "s0", (0.0, 1.0), 1, 1)], RunCounts(), 3)  # type: ignore[arg-type]
        next(halfway)
        halfway.close()
        assert killed == started
        assert not any(actor_pool._idle.values())


@given(random=st.randoms(use_true_random=False))
def test_a_pool_pauses_when_enough_blocks_wait_behind_it(random):
    """What is made and not yet taken up lies in memory: twice as many blocks as the next pool has workers, at most."""
    slow, waiting = _pool(1, size=1), []

    class Watched(PlayedWorker):
        def _work(self, job, given, fates):
            waiting.append(len(slow.waiting))
            return super()._work(job, given, fates)

    with played(random, {}, 1) as patch:
        patch.setattr(actor_pool, "Worker", _hiring(lambda: Watched({}, 1)))
        assert len([*stream(_blocks("abcdefghijkl", 1), [_pool(0, size=2), slow], RunCounts(), 3)]) == 12
    assert max(waiting) <= 2 * slow.size + 1  # those that were at work when it became full come on top


def _hiring(make: Callable[[], Any]) -> SimpleNamespace:
    return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))
