"""The way of blocks through workers that die, on a cluster that is only played: whatever dies when, and in which order
answers come, every row comes out once and those that killed their workers are the ones that failed.
"""

import time
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
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError

from pipeline.execution import actor_pool, executor
from pipeline.execution.actor_pool import ActorPool, Claims
from pipeline.execution.executor import Limits, NoNode, stream
from pipeline.execution.fate import Fate
from pipeline.execution.flight_recorder import Recording, Station
from pipeline.execution.nodes import ClusterNode
from pipeline.execution.operator import Report
from pipeline.execution.placement import Placement
from pipeline.execution.run_counts import RunCounts
from pipeline.execution.worker_deaths import StageKillsWorkers
from schemas import columns

NODES = {"n": ClusterNode("n", "host", cpus=4, gpus=1, store_bytes=2**30)}
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
        self.ready = SimpleNamespace(remote=lambda: Ref(Station("n", self)))
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

    def wait(refs: Sequence[Any], num_returns: int, timeout: float, **_: Any) -> Any:
        done = random.sample(list(refs), random.randint(1, len(refs)) if timeout else 0)
        return done[:num_returns], [ref for ref in refs if ref not in done[:num_returns]]

    def found(stations: Sequence[Station]) -> list[Recording]:
        return [station.path.left for station in stations]  # type: ignore[attr-defined]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actor_pool, "Worker", _hiring(lambda: PlayedWorker(killers, batch)))
        patch.setattr(executor, "recordings", found)
        patch.setattr(executor, "nodes_alive", lambda: NODES)
        patch.setattr(actor_pool, "_idle", {})
        for name, function in {"get": get, "wait": wait, "kill": id, "is_initialized": lambda: True}.items():
            patch.setattr(executor.ray, name, function)
        yield patch


def _streamed(
    blocks: Iterator[pa.Table],
    sizes: Sequence[int],
    counts: RunCounts,
    max_attempts: int,
    claims: Claims = Claims(cpus=1),  # noqa: B008 - it cannot be changed
) -> Iterator[pa.Table]:
    """Blocks through operators with this many workers each; those behind the first may have a block in advance."""
    pools = [ActorPool(i, f"s{i}", claims, depth=2 if i else 1) for i in range(len(sizes))]  # type: ignore[arg-type]
    placements = [Placement(claims, least=size, most=size) for size in sizes]
    return stream(blocks, pools, placements, counts, Limits(max_attempts))


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
        try:
            came = [*_streamed(_blocks(ids, per_block), sizes, counts, max_attempts)]
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
        list(_streamed(_blocks(ids, 1), [size], counts, 2))
    assert not counts.done


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
        came = [*_streamed(_blocks("abcdef", 1), [2, 2], counts, 1)]
    rows = pa.concat_tables(came).to_pylist()
    assert sorted(row["row_id"] for row in rows) == list("abcdef")
    assert {(row["verdict"]["status"], row["verdict"]["attempts"]) for row in rows} == {("kept", 1)}
    assert not still_lost


def test_an_answer_that_was_lost_with_its_connection_is_missed_and_its_song_done_again():
    """Nothing tells of it until something is sent to the worker, which has long been at rest."""
    counts, unheard, deadline = RunCounts(), Ref(None), time.monotonic() + 10

    def probed() -> Ref:
        unheard.value = ActorUnavailableError("the connection is gone", None)
        return Ref(None)

    class Unheard(PlayedWorker):
        def _work(self, job, given, fates):
            report, made = super()._work(job, given, fates)
            if given["row_id"].to_pylist() != ["c"] or unheard.value:
                return report, made
            self.ready = SimpleNamespace(remote=probed)
            return unheard, made

    def wait(refs, num_returns, **_):
        assert time.monotonic() < deadline, "it is waited for for ever"
        done = [ref for ref in refs if ref.value is not None][:num_returns]
        return done, [ref for ref in refs if ref not in done]

    with played(Random(0), {}, 1) as patch:
        patch.setattr(actor_pool, "Worker", _hiring(lambda: Unheard({}, 1)))
        patch.setattr(executor.ray, "wait", wait)
        patch.setattr(executor, "_PROBE_S", 0.05)
        came = [*_streamed(_blocks("abcd", 1), [2], counts, 1)]
    rows = {row["row_id"]: row["verdict"] for row in pa.concat_tables(came).to_pylist()}
    assert {row_id: verdict["attempts"] for row_id, verdict in rows.items()} == {"a": 1, "b": 1, "c": 2, "d": 1}
    assert {verdict["status"] for verdict in rows.values()} == {"kept"}
    assert counts.repeated == 1


def test_a_node_that_is_gone_is_not_asked_what_its_workers_died_of():
    counts, nodes, made, asked = RunCounts(), {**NODES, "other": NODES["n"]}, [], []

    class OnOther(PlayedWorker):
        def _work(self, job, given, fates):
            nodes.pop("other", None)
            return Ref(ActorDiedError()), Ref(ActorDiedError())

    def worker() -> PlayedWorker:
        made.append(PlayedWorker({}, 1) if made else OnOther({}, 1))
        if len(made) == 1:
            made[0].ready = SimpleNamespace(remote=lambda: Ref(Station("other", made[0])))
        return made[-1]

    with played(Random(0), {}, 1) as patch:
        patch.setattr(actor_pool, "Worker", _hiring(worker))
        patch.setattr(executor, "nodes_alive", lambda: dict(nodes))
        patch.setattr(executor, "recordings", lambda stations: asked.extend(stations) or [None])
        came = [*_streamed(_blocks("abcd", 1), [2], counts, 1)]
    assert sorted(pa.concat_tables(came)["row_id"].to_pylist()) == list("abcd")
    assert counts.repeated == 1
    assert not asked


def test_workers_of_which_none_comes_to_life_end_the_pass():
    started = []

    def stillborn() -> SimpleNamespace:
        started.append(SimpleNamespace(ready=SimpleNamespace(remote=lambda: Ref(ActorDiedError()))))
        return started[-1]

    with played(Random(0), {}, 1) as patch:
        patch.setattr(actor_pool, "Worker", _hiring(stillborn))
        with pytest.raises(ActorDiedError):
            list(_streamed(_blocks("ab", 1), [2], RunCounts(), 3))
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
            assert len([*_streamed(_blocks("abcd", 1), [2], RunCounts(), 3)]) == 4
        assert (len(started), killed) == (2, [])
        assert len([*_streamed(_blocks("ab", 1), [1], RunCounts(), 3, Claims(gpus=1))]) == 2
        assert killed == started[:2]  # in whose place the other one comes
        halfway = _streamed(_blocks("ab", 1), [1], RunCounts(), 3, Claims(gpus=1))
        next(halfway)
        halfway.close()
        assert killed == started
        assert not any(actor_pool._idle.values())


def test_what_fits_nowhere_is_refused_once_it_has_been_waited_for():
    counts = RunCounts()
    with (
        played(Random(0), {}, 1),
        pytest.raises(NoNode, match="no node of the cluster has 2 GPU, which the operators of s0"),
    ):
        list(_streamed(_blocks("ab", 1), [1], counts, 3, Claims(gpus=2)))
    assert counts.lacking == "2 GPU"


def _hiring(make: Callable[[], Any]) -> SimpleNamespace:
    return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))
