"""Runs on a cluster of several nodes that die, freeze, join and leave: nothing is lost, nothing hangs.

The nodes are raylets on this machine. That a network fails between machines is shown by `benchmarks/three_hosts.py`.
"""

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from pipeline.execution.cluster import cluster as joined
from pipeline.execution.cluster import run_pass
from pipeline.execution.executor import NoNode
from pipeline.execution.operator import OperatorSpec
from pipeline.execution.run_counts import RunCounts
from pipeline.planning.dag import Node
from schemas import columns
from schemas.config import ResourceConfig
from tests.support.audio import tone, write
from tests.support.command import asked, songmill, start
from tests.support.nodes import SmallCluster, autoscaling_cluster, noted, small_cluster
from tests.support.toy_stages import SleeperParams, SoundParams

pytestmark = pytest.mark.ray

TEXT = [pa.field(name, pa.string()) for name in ("row_id", "uri", "title")]
VERDICT = pa.field("verdict", columns.VERDICT)


@pytest.fixture(scope="module")
def whole_cluster() -> Iterator[SmallCluster]:
    with small_cluster() as small, joined(ResourceConfig(ray_address=small.address)):
        yield small


@pytest.fixture
def nodes(whole_cluster: SmallCluster) -> Iterator[SmallCluster]:
    yield whole_cluster
    whole_cluster.remove_others()
    while len([node for node in ray.nodes() if node["Alive"]]) > 1:
        time.sleep(0.1)


class Run:
    """A pass of songs that are slept over, in a thread."""

    def __init__(
        self, cluster: SmallCluster, log: Path, songs: int, *, seconds: float, megabytes: int = 0, **resources
    ):
        self.counts, self.log = RunCounts(), log
        self.rows: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self._resources = ResourceConfig(ray_address=cluster.address, **resources)
        verdict = {"status": "kept", "stage": None, "reason": None, "message": None, "attempts": 0}
        rows = [{"row_id": f"r{i}", "uri": f"{i}.flac", "title": f"t{i}", "verdict": verdict} for i in range(songs)]
        self._table = pa.Table.from_pylist(rows, schema=pa.schema([*TEXT, VERDICT]))
        self._operators = _operators(log, seconds, megabytes)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.rows = list(run_pass(self._table, self._operators, pa.Table.to_pylist, self._resources, self.counts))
        except BaseException as error:
            self.error = error

    def until(self, condition: Callable[[], bool], timeout_s: float = 40) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self._thread.is_alive(), self.error
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.05)

    def ended(self, songs: int = 1) -> Callable[[], bool]:
        return lambda: sum(line.what == "end" for line in noted(self.log)) >= songs

    def finish(self, timeout_s: float) -> Counter[str]:
        """How often each song was begun; every one has come out once, kept."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "it does not end"
        assert self.error is None, self.error
        assert sorted(row["row_id"] for row in self.rows) == sorted(self._table["row_id"].to_pylist())
        assert {row["verdict"]["status"] for row in self.rows} == {"kept"}
        return Counter(line.title for line in noted(self.log) if line.what == "begin")


def _operators(log: Path, seconds: float, megabytes: int) -> list[OperatorSpec]:
    sleeper = _node("Sleeper", SleeperParams(seconds=seconds, log=log), concurrency=4 if megabytes else 0)
    sound = [_node("Sound", SoundParams(megabytes=megabytes))] if megabytes else []
    groups, carried = [[node] for node in (*sound, sleeper)], [*TEXT, VERDICT]
    specs = []
    for i, nodes in enumerate(groups):
        carried = [*carried, *(pa.field(node.column, node.stage_type.type) for node in nodes)]
        is_last = i == len(groups) - 1
        between = [] if is_last else [pa.field("noise", pa.large_binary())]
        specs.append(OperatorSpec(tuple(nodes), (), pa.schema([*carried, *between]), None, is_last))
    return specs


def _node(kind: str, params: Any, concurrency: int = 0) -> Node:
    return Node(kind.lower(), f"tests.support.toy_stages:{kind}", params, {}, "fingerprint", concurrency=concurrency)


def test_a_node_that_is_killed_costs_the_songs_it_had_a_second_beginning(nodes, tmp_path):
    first, second = nodes.add(), nodes.add()
    run = Run(nodes, tmp_path / "log", 10, seconds=0.7)
    run.until(lambda: {line.node for line in noted(run.log)} >= {first.node_id, second.node_id})
    nodes.kill(second)
    begun = run.finish(timeout_s=30)
    assert set(begun.values()) <= {1, 2}
    assert sum(begun.values()) <= 10 + 1
    assert run.counts.nodes_lost
    assert {row["verdict"]["attempts"] for row in run.rows} <= {1, 2}


def test_a_node_that_freezes_is_given_up_and_what_it_had_is_done_elsewhere(nodes, tmp_path):
    first, second = nodes.add(), nodes.add()
    run = Run(nodes, tmp_path / "log", 8, seconds=0.7)
    run.until(lambda: {line.node for line in noted(run.log)} >= {first.node_id, second.node_id})
    nodes.freeze(second)
    begun = run.finish(timeout_s=40)
    assert sum(begun.values()) <= 8 + 1
    assert len(run.counts.nodes_lost) == 1


def test_a_node_that_joins_is_used(nodes, tmp_path):
    nodes.add()
    run = Run(nodes, tmp_path / "log", 14, seconds=0.7)
    run.until(run.ended())
    late = nodes.add()
    begun = run.finish(timeout_s=40)
    assert set(begun.values()) == {1}
    assert late.node_id in {row["sleeper"]["node"] for row in run.rows}


def test_a_head_alone_waits_for_its_first_node(nodes, tmp_path):
    run = Run(nodes, tmp_path / "log", 3, seconds=0.1)
    run.until(lambda: run.counts.lacking == "a CPU")
    nodes.add()
    assert set(run.finish(timeout_s=30).values()) == {1}


def test_what_waits_too_long_for_a_node_says_what_it_lacks(nodes, tmp_path):
    run = Run(nodes, tmp_path / "log", 3, seconds=0.1, wait_for_nodes_s=2)
    run._thread.join(20)
    assert isinstance(run.error, NoNode)
    assert "no node of the cluster has a CPU, which the operators of sleeper need" in str(run.error)


def test_all_nodes_may_go_while_new_ones_come(nodes, tmp_path):
    only = nodes.add()
    run = Run(nodes, tmp_path / "log", 6, seconds=0.5)
    run.until(run.ended())
    nodes.kill(only)
    run.until(lambda: bool(run.counts.lacking))
    nodes.add()
    begun = run.finish(timeout_s=40)
    assert sum(begun.values()) <= 6 + 1


def test_blocks_that_would_fill_the_object_store_wait_and_are_not_spilled(nodes, tmp_path):
    """30 blocks of 40 MB, a store of 200 MB, and operators behind that are slower than the one before."""
    nodes.add()
    run = Run(nodes, tmp_path / "log", 30, seconds=0.3, megabytes=40)
    largest = 0

    def watch() -> bool:
        nonlocal largest
        largest = max(largest, run.counts.bytes_in_flight)
        return not run._thread.is_alive()

    while not watch():
        time.sleep(0.05)
    assert set(run.finish(timeout_s=60).values()) == {1}
    assert 0 < largest <= 2 * 0.4 * 200 * 2**20
    spilled = list(Path(ray.get_runtime_context().get_temp_dir()).rglob("ray_spilled_objects*/*"))
    assert not spilled


def test_a_node_with_a_drain_notice_ends_its_song_and_gets_no_more(nodes, tmp_path):
    first, second = nodes.add(), nodes.add()
    run = Run(nodes, tmp_path / "log", 10, seconds=0.7)
    run.until(lambda: {line.node for line in noted(run.log)} >= {first.node_id, second.node_id})
    nodes.drain(second)
    run.until(lambda: run.counts.workers == 1)
    before = [line for line in noted(run.log) if line.node == second.node_id]
    assert [line.what for line in before].count("begin") == [line.what for line in before].count("end")
    begun = run.finish(timeout_s=30)
    assert set(begun.values()) == {1}
    assert [line for line in noted(run.log) if line.node == second.node_id] == before


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    for i in range(6):
        write(folder / f"s{i}.flac", tone(220.0 * (i + 1), 2), metadata={"title": f"t{i}"})
    return folder


@pytest.fixture
def command(songs: Path, tmp_path: Path) -> Callable[[str], list[object]]:
    """The arguments of a run that sleeps 1.2 s over every song, by the name of its dataset."""

    def arguments(name: str) -> list[object]:
        log = tmp_path / f"{name}.log"
        sleeper = f"sleeper: {{engine: 'tests.support.toy_stages:Sleeper', seconds: 1.2, log: {log}}}"
        config = tmp_path / f"{name}.yaml"
        config.write_text(f"stages: {{decode: {{}}, {sleeper}}}\n")
        options = ("--set=audio.min_duration_s=1", "--set=dedup.threshold=1", "--set=resources.rows_per_shard=2")
        return ["curate", songs, "--out", tmp_path / name, "--config", config, *options]

    return arguments


class TestTheCommand:
    """`songmill curate` on such a cluster."""

    def test_a_killed_node_leaves_a_whole_dataset(self, nodes, command, tmp_path):
        nodes.add(), nodes.add()
        run = start(*command("one"), RAY_ADDRESS=nodes.address)
        log = tmp_path / "one.log"
        _until(lambda: len({line.node for line in noted(log)}) == 2, run)
        nodes.kill(nodes.by_id(noted(log)[-1].node))
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        assert "6 rows = 6 kept + 0 filtered + 0 failed" in out
        assert sum(line.what == "begin" for line in noted(log)) <= 6 + 1
        assert asked("verify", tmp_path / "one")

    def test_a_killed_driver_leaves_no_worker_and_the_same_command_finishes(self, nodes, command, tmp_path):
        node, log = nodes.add(), tmp_path / "two.log"
        run = start(*command("two"), "--quiet", RAY_ADDRESS=nodes.address)
        _until(lambda: sum(line.what == "end" for line in noted(log)) == 3, run)
        run.kill()
        run.communicate()
        of_the_first = {line.pid for line in noted(log)}
        _until(lambda: not of_the_first & {*nodes.processes(node)})
        out, _ = songmill(*command("two"), "--quiet", RAY_ADDRESS=nodes.address)
        assert "6 rows = 6 kept + 0 filtered + 0 failed" in out
        begun = Counter(line.title for line in noted(log) if line.what == "begin")
        assert sum(begun.values()) <= 6 + 2  # a unit of two was committed, the other songs of the first run were not
        assert asked("verify", tmp_path / "two")

    def test_two_runs_share_the_cluster_and_a_second_on_the_same_dataset_is_refused(self, nodes, command, tmp_path):
        nodes.add(), nodes.add()
        first = start(*command("a"), "--quiet", RAY_ADDRESS=nodes.address)
        _until(lambda: bool(noted(tmp_path / "a.log")), first)
        assert "another songmill process is writing this dataset" in asked(*command("a"), "--quiet", code=1)
        other = start(*command("b"), "--quiet", RAY_ADDRESS=nodes.address)
        for name, run in (("a", first), ("b", other)):
            out, err = run.communicate(timeout=90)
            assert run.returncode == 0, err
            assert "6 rows = 6 kept + 0 filtered + 0 failed" in out
            assert {*Counter(line.title for line in noted(tmp_path / f"{name}.log")).values()} == {2}
            assert asked("verify", tmp_path / name)


def test_an_autoscaler_brings_the_nodes_that_a_run_asks_for(command, tmp_path):
    """Ray's own autoscaler and its provider for tests, whose nodes are raylets on this machine."""
    with autoscaling_cluster(tmp_path, most=2) as env:
        out, _ = songmill(*command("grown"), "--quiet", **env)
    assert "6 rows = 6 kept + 0 filtered + 0 failed" in out
    assert len({line.node for line in noted(tmp_path / "grown.log")}) == 2
    events = json.loads(asked("runs", tmp_path / "grown", "2", "--json"))["events"]
    found = [(event["id"], event["cpus"]) for event in events if event["event"] == "node_found"]
    assert found[0][1] == 0  # a head without cores was all there was
    assert len({*found}) == 3  # the second node may have come as late as in the second pass


def _until(condition: Callable[[], bool], run: subprocess.Popen[str] | None = None, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert run is None or run.poll() is None, run.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)
