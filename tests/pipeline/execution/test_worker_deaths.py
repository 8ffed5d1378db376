"""Workers that die for real: whom the run blames, what it says of it, and what never reaches the screen."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError

from pipeline.execution.actor_pool import ActorPool, Claims
from pipeline.execution.cluster import cluster
from pipeline.execution.executor import Limits, stream
from pipeline.execution.flight_recorder import Recording
from pipeline.execution.operator import OperatorSpec
from pipeline.execution.placement import Placement
from pipeline.execution.postmortem import Death, explain
from pipeline.execution.run_counts import RunCounts
from pipeline.execution.worker_deaths import Deaths, StageKillsWorkers
from pipeline.planning.dag import Node
from schemas import columns
from schemas.config import ResourceConfig
from tests.support.audio import tone, write
from tests.support.command import asked, environment, inspected, queried, ray_cluster, songmill
from tests.support.places import ROOT
from tests.support.toy_stages import KillerParams


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    for i, name in enumerate(("able", "baker", "charlie", "dog", "easy")):
        write(folder / f"{name}.flac", tone(220 * (i + 1), 3), metadata={"title": name})
    return folder


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A cluster of this process; workers outlive a test if it lets them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # workers import the toy stages
        with cluster(ResourceConfig()):
            yield


def curated(
    source: Path, folder: Path, settings: str, *more: str, code: int = 0, env: Mapping[str, str]
) -> tuple[Path, str]:
    """Curate songs with a `KillerOfMany` of these parameters; the dataset and what was said on stderr."""
    config, out = folder / "run.yaml", folder / "dataset"
    killer, length = (
        f"engine: 'tests.support.toy_stages:KillerOfMany', {settings}",
        "engine: 'tests.support.toy_stages:Length'",
    )
    config.write_text(f"stages: {{decode: {{}}, killer: {{{killer}}}, length: {{{length}}}}}\n")
    options = ("--set=audio.min_duration_s=1", "--set=dedup.threshold=1", "--set=resources.rows_per_shard=1")
    command = ("curate", source, "--out", out, "--config", config, *options, *more)
    said, err = songmill(*command, code=code, **env)
    assert said.count("\n") == (2 if code == 0 else 0)  # Ray's paragraphs are not here either
    return out, err


def put_through(titles: str, counts: RunCounts, *, max_attempts: int = 2, **params: Any) -> list[dict[str, Any]]:
    """Rows of these titles behind a `Killer`, by one worker."""
    node = Node("killer", "tests.support.toy_stages:Killer", KillerParams(**params), {}, "fingerprint")
    text = [pa.field(name, pa.string()) for name in ("row_id", "uri", "title")]
    verdict = {"status": "kept", "stage": None, "reason": None, "message": None, "attempts": 0}
    rows = [{"row_id": t, "uri": f"{t}.flac", "title": t, "verdict": verdict} for t in titles.split()]
    carried = [*text, pa.field("killer", node.stage_type.type), pa.field("verdict", columns.VERDICT)]
    spec = OperatorSpec(nodes=(node,), gates=(), carried=pa.schema(carried), prepare=None, is_last=True)
    blocks = iter(pa.Table.from_pylist([row], schema=pa.schema([*text, carried[-1]])) for row in rows)
    pool, placement = ActorPool(ray.put(spec), "killer", Claims(cpus=1)), Placement(Claims(cpus=1), least=1, most=1)
    put = stream(blocks, [pool], [placement], counts, Limits(max_attempts))
    return [row for block in put for row in block.to_pylist()]


def test_a_crash_costs_one_row_which_is_told_with_stage_signal_and_frames(songs, tmp_path, shared_cluster):
    by_chance = f"once: able, memory: {tmp_path / 'memory'}"
    settings = f"always: [baker], by: SIGSEGV, {by_chance}"
    out, err = curated(songs, tmp_path, settings, "--quiet", "--set=resources.rows_per_block=5", env=shared_cluster)
    assert err == ""
    assert (tmp_path / "memory").exists()
    assert inspected(out)["rows"] == {"kept": 4, "filtered": 0, "failed": 1, "total": 5}
    (row,) = queried(out, "select title, audio.duration_s as s, verdict.* from quarantine")
    assert (row["title"], row["stage"], row["reason"], row["attempts"]) == ("baker", "killer", "WorkerDied", 3)
    assert row["message"].startswith("SIGSEGV in killer (ctypes/__init__.py:")
    assert "string_at, tests/support/toy_stages.py:" in row["message"]
    assert row["message"].endswith("process); it killed its worker 3 times")
    assert row["s"] == pytest.approx(3, abs=0.1)  # what came before the crash is kept
    attempts = queried(out, "select title, verdict.attempts as n from tracks order by 1")
    assert {row["title"]: row["n"] for row in attempts} == {"able": 1, "charlie": 1, "dog": 1, "easy": 1}
    (group,) = json.loads(asked("quarantine", out, "--json"))
    assert (group["stage"], group["reason"], group["rows"]) == ("killer", "WorkerDied", 1)
    (log,) = (out / "_songmill" / "logs").iterdir()
    assert "Fatal Python error: Segmentation fault" in log.read_text()


def test_a_stage_that_kills_its_worker_on_every_song_ends_the_run_and_leaves_them_undone(
    songs, tmp_path, shared_cluster
):
    settings = "always: [able, baker, charlie, dog, easy], by: SIGSEGV"
    out, err = curated(songs, tmp_path, settings, "--quiet", code=1, env=shared_cluster)
    assert err.startswith("error: stage 'killer' kills its worker on every song: 3 of 3 so far")
    assert "SIGSEGV in killer (ctypes/__init__.py" in err
    assert "songmill doctor" in err
    assert err.count("\n") == 1
    assert not list(out.glob("_songmill/commits/*.json"))


@pytest.mark.ray
class TestInOneStage:
    """The pool alone, without a dataset."""

    def test_a_kill_by_chance_is_one_more_attempt_and_one_that_comes_again_fails_the_row(self, ray_here, tmp_path):
        counts = RunCounts()
        rows = put_through("dog able easy", counts, always=["dog"], once="able", memory=tmp_path / "memory")
        verdicts = {row["title"]: row["verdict"] for row in rows}
        assert {title: (v["status"], v["attempts"]) for title, v in verdicts.items()} == {
            "dog": ("failed", 2),
            "able": ("kept", 2),
            "easy": ("kept", 1),
        }
        assert verdicts["dog"]["stage"] == "killer"
        assert verdicts["dog"]["message"].startswith("SIGKILL in killer, probably out of memory: run fewer workers")
        assert verdicts["dog"]["message"].endswith("; it killed its worker 2 times")
        assert counts.status == {"kept": 2, "failed": 1}
        assert counts.deaths.passed == {"killer": 2}

    def test_an_exit_leaves_its_code_and_of_a_single_song_nobody_can_tell_so_it_fails(self, ray_here):
        (row,) = put_through("one", RunCounts(), always=["one"], by="exit", max_attempts=1)
        assert row["verdict"]["attempts"] == 1
        assert row["verdict"]["message"].startswith("exit with code 7 in killer (tests/support/toy_stages.py:")
        assert row["verdict"]["message"].endswith("; it killed its worker once")

    def test_where_fewer_songs_come_all_of_them_are_enough_to_blame_the_stage(self, ray_here):
        with pytest.raises(StageKillsWorkers, match=r"2 of 2 so far, most recently .*flac: SIGABRT in killer"):
            put_through("able baker", RunCounts(), always=["able", "baker"], by="SIGABRT", max_attempts=1)


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_on_another_machine_is_told_of_as_well(songs, tmp_path):
    with ray_cluster("--num-cpus=0") as env:
        ray_command = Path(sys.executable).with_name("ray")
        command = [ray_command, "start", "--block", f"--address={env['RAY_ADDRESS']}", "--num-cpus=1"]
        other = subprocess.Popen(command, env=environment(**env), stdout=subprocess.DEVNULL)
        try:
            out, _ = curated(songs, tmp_path, "always: [baker], by: SIGSEGV", env=env)
        finally:
            other.terminate()
            other.wait()
    (row,) = queried(out, "select verdict.* from quarantine")
    assert row["message"].startswith("SIGSEGV in killer (ctypes/__init__.py:")


def test_a_worker_that_ends_before_it_begins_is_no_songs_fault():
    recording = Recording(stage="", row_ids=())
    assert not explain(recording, ActorDiedError(), ("decode", ["a"])).row_ids
    lost = explain(None, ActorDiedError(), ("decode", ["a"]))
    assert (lost.stage, lost.row_ids, lost.with_machine) == ("decode", ("a",), True)
    assert str(lost) == "a machine that was lost or unreachable in decode"


def test_a_worker_that_is_only_out_of_reach_has_not_been_killed_by_the_song_it_is_at():
    lost = explain(Recording("key", ("b",)), ActorUnavailableError("gone", None), ("decode", ["a"]))
    assert (lost.row_ids, lost.with_machine) == (("a",), True)
    crash = "Fatal Python error: Aborted"
    died = explain(Recording("key", ("b",), crash=crash), ActorUnavailableError("gone", None), ("decode", ["a"]))
    assert (died.stage, died.row_ids, died.cause, died.with_machine) == ("key", ("b",), "SIGABRT", False)


def test_frames_of_a_native_thread_are_those_of_the_thread_at_work():
    crash = (
        "Fatal Python error: Aborted\n\nCurrent thread 0x1 (most recent call first):\n  <no Python frame>\n\n"
        'Thread 0x2 (most recent call first):\n  File "/usr/lib/python3.11/selectors.py", line 4 in select\n\n'
        "Thread 0x3 (most recent call first):\n"
        '  File "/somewhere/site-packages/librosa/core/pitch.py", line 123 in _parabolic\n'
        '  File "/somewhere/site-packages/librosa/core/pitch.py", line 99 in piptrack\n'
        '  File "/somewhere/site-packages/librosa/core/pitch.py", line 50 in estimate_tuning\n'
        '  File "/elsewhere/stages/key.py", line 72 in process\n'
        '  File "/elsewhere/stages/base.py", line 198 in run\n'
        '  File "/elsewhere/pipeline/execution/operator.py", line 222 in _run\n\n'
        "Extension modules: numpy (total: 1)\n"
    )
    death = explain(Recording("key", ("a",), crash=crash), ActorDiedError(), ("decode", ["a"]))
    frames = "librosa/core/pitch.py:123 _parabolic, librosa/core/pitch.py:99 piptrack, stages/key.py:72 process"
    assert str(death) == f"SIGABRT in key ({frames})"


def test_memory_that_ray_saw_run_out_is_called_by_name():
    death = explain(Recording("key", ("a",)), OutOfMemoryError("low"), ("decode", ["a"]))
    cause = "killed by Ray in key, because its machine was nearly out of memory: run fewer workers"
    assert str(death).startswith(cause)


@given(
    killed=st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=4), min_size=1, max_size=12),
    max_attempts=st.integers(1, 4),
)
def test_a_stage_is_blamed_for_three_songs_and_never_once_a_row_has_passed(killed, max_attempts):
    """However deaths come: no more than two disjoint groups of rows die in a stage that nobody passes."""
    untried, passed = Deaths(), Deaths()
    passed.passed["s"] = 1
    seen: list[set[str]] = []
    alone: Counter[str] = Counter()
    for rows in killed:
        death, uris = Death("s", tuple(rows), "SIGSEGV"), {row: f"{row}.flac" for row in rows}
        passed.count(death, max_attempts, uris)
        alone.update(rows if len(rows) == 1 else ())
        seen = [*(other for other in seen if not other & rows), rows]
        if len(seen) > 2:
            with pytest.raises(StageKillsWorkers, match="stage 's' kills its worker on every song: 3 of 3"):
                untried.count(death, max_attempts, uris)
            break
        untried.count(death, max_attempts, uris)
    fates = passed.fates("abcdefgh")
    assert {row: bool(fate.message) for row, fate in fates.items()} == {r: n >= max_attempts for r, n in alone.items()}
    assert all(fate.attempts == alone[row] + (not fate.message) for row, fate in fates.items())
