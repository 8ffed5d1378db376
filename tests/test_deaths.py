"""Workers that die for real: whom the run blames, what it says of it, and what never reaches the screen."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, OutOfMemoryError

from pipeline.deaths import Deaths, StageKillsWorkers
from pipeline.flight_recorder import Recording
from pipeline.postmortem import Death, explain
from tests.audio import tone, write
from tests.command import environment, inspected, queried, ray_cluster, songmill
from tests.long import long


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    with ray_cluster() as settings:
        yield settings


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    for i, name in enumerate(("able", "baker", "charlie", "dog", "easy")):
        write(folder / f"{name}.flac", tone(220 * (i + 1), 3), metadata={"title": name})
    return folder


@pytest.fixture
def curated(songs: Path, tmp_path: Path, cluster: dict[str, str]) -> Callable[..., tuple[Path, str]]:
    """`curated_with` the module's cluster and songs."""

    def curate(settings: str, *more: str, source: Path = songs, **rest: Any) -> tuple[Path, str]:
        return curated_with(cluster, source, tmp_path, settings, *more, **rest)

    return curate


def curated_with(
    cluster: Mapping[str, str],
    source: Path,
    folder: Path,
    settings: str,
    *more: str,
    code: int = 0,
    kind: str = "Killer",
) -> tuple[Path, str]:
    """Curate songs with a `Killer` of these parameters; the dataset and what was said on stderr."""
    config, out = folder / "run.yaml", folder / "dataset"
    killer, length = f"{{engine: 'tests.toy_stages:{kind}', {settings}}}", "{engine: 'tests.toy_stages:Length'}"
    config.write_text(f"stages: {{decode: {{}}, killer: {killer}, length: {length}}}\n")
    options = ("--set=audio.min_duration_s=1", "--set=dedup.threshold=1", "--set=resources.rows_per_shard=1")
    said, err = songmill("curate", source, "--out", out, "--config", config, *options, *more, code=code, **cluster)
    assert said.count("\n") == (code == 0)  # Ray's paragraphs are not here either
    return out, err


class TestARowToBlame:
    """Others pass the stage, so that it is the row's fault."""

    def test_a_crash_is_told_with_stage_signal_and_frames_and_a_death_by_chance_costs_nothing(self, curated, tmp_path):
        by_chance = f"once: able, memory: {tmp_path / 'memory'}"
        out, err = curated(f"always: [baker], by: SIGSEGV, {by_chance}", "--quiet", "--set=resources.rows_per_block=5")
        assert err == ""
        assert (tmp_path / "memory").exists()
        assert inspected(out)["rows"] == {"kept": 4, "filtered": 0, "failed": 1, "total": 5}
        (row,) = queried(out, "select title, audio.duration_s as s, verdict.* from quarantine")
        assert (row["title"], row["stage"], row["reason"], row["attempts"]) == ("baker", "killer", "WorkerDied", 3)
        assert row["message"].startswith("SIGSEGV in killer (ctypes/__init__.py:")
        assert "string_at, tests/toy_stages.py:" in row["message"]
        assert row["message"].endswith("process); it killed its worker 3 times")
        assert row["s"] == pytest.approx(3, abs=0.1)  # what came before the crash is kept
        attempts = queried(out, "select title, verdict.attempts as n from tracks order by 1")
        assert {row["title"]: row["n"] for row in attempts} == {"able": 2, "charlie": 1, "dog": 1, "easy": 1}
        (log,) = (out / "_songmill" / "logs").iterdir()
        assert "Fatal Python error: Segmentation fault" in log.read_text()

    def test_a_kill_and_an_exit_are_told_apart(self, curated):
        out, _ = curated("always: [dog], by: SIGKILL", "--set=resources.max_attempts=1")
        (row,) = queried(out, "select verdict.* from quarantine")
        assert (row["stage"], row["attempts"]) == ("killer", 1)
        assert row["message"].startswith("SIGKILL in killer, probably out of memory: run fewer workers")
        assert row["message"].endswith("; it killed its worker once")
        out, err = curated("always: [dog], by: exit", "--update", "--set=resources.max_attempts=2")
        (row,) = queried(out, "select verdict.* from quarantine")
        assert row["attempts"] == 2
        assert row["message"].startswith("exit with code 7 in killer (tests/toy_stages.py:")
        assert "ray" not in err.lower()
        assert all(line.startswith(("scan: ", "curate: ")) for line in err.splitlines())

    def test_of_a_single_song_nobody_can_tell_so_it_fails(self, curated, tmp_path):
        (tmp_path / "one").mkdir()
        write(tmp_path / "one" / "one.flac", tone(440, 3), metadata={"title": "one"})
        out, _ = curated("always: [one], by: SIGSEGV", source=tmp_path / "one")
        assert inspected(out)["rows"]["failed"] == 1


class TestAStageToBlame:
    """Nobody passes it."""

    @pytest.mark.parametrize("titles", [("able", "baker", "charlie", "dog", "easy"), ("able", "baker")])
    def test_the_run_stops_and_leaves_the_rows_undone(self, curated, songs, tmp_path, titles):
        for title in titles:
            shutil.copy(songs / f"{title}.flac", tmp_path)
        every = f"always: [{', '.join(titles)}], by: SIGSEGV"
        out, err = curated(every, "--quiet", code=1, source=tmp_path / "*.flac")
        assert err.startswith("error: stage 'killer' kills its worker on every song: ")
        assert "SIGSEGV in killer (ctypes/__init__.py" in err
        assert "songmill doctor" in err
        assert err.count("\n") == 1
        assert not list(out.glob("_songmill/commits/*.json"))

    def test_several_at_once_are_told_apart(self, curated):
        out, _ = curated("always: [charlie], by: exit", "--set=resources.rows_per_block=5", kind="KillerOfMany")
        assert inspected(out)["rows"] == {"kept": 4, "filtered": 0, "failed": 1, "total": 5}
        (row,) = queried(out, "select title, verdict.* from quarantine")
        assert (row["title"], row["stage"], row["attempts"]) == ("charlie", "killer", 3)


@long
def test_a_worker_on_another_machine_is_told_of_as_well(songs, tmp_path):
    with ray_cluster("--num-cpus=0") as settings:
        node = [Path(sys.executable).with_name("ray"), "start", "--block", f"--address={settings['RAY_ADDRESS']}"]
        with subprocess.Popen([*node, "--num-cpus=1"], env=environment(**settings), stdout=subprocess.DEVNULL) as other:
            out, _ = curated_with(settings, songs, tmp_path, "always: [baker], by: SIGSEGV")
            other.terminate()
    (row,) = queried(out, "select verdict.* from quarantine")
    assert row["message"].startswith("SIGSEGV in killer (ctypes/__init__.py:")


def test_a_worker_that_ends_before_it_begins_is_no_songs_fault():
    recording = Recording(stage="", row_ids=())
    assert not explain(recording, ActorDiedError(), ("decode", ["a"])).row_ids
    lost = explain(None, ActorDiedError(), ("decode", ["a"]))
    assert (lost.stage, lost.row_ids, lost.with_machine) == ("decode", ("a",), True)
    assert str(lost) == "a machine that was lost or out of reach in decode"


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
        '  File "/elsewhere/pipeline/operator.py", line 222 in _run\n\n'
        "Extension modules: numpy (total: 1)\n"
    )
    death = explain(Recording("key", ("a",), crash=crash), ActorDiedError(), ("decode", ["a"]))
    frames = "librosa/core/pitch.py:123 _parabolic, librosa/core/pitch.py:99 piptrack, stages/key.py:72 process"
    assert str(death) == f"SIGABRT in key ({frames})"


def test_memory_that_ray_saw_run_out_is_called_by_name():
    death = explain(Recording("key", ("a",)), OutOfMemoryError("low"), ("decode", ["a"]))
    assert str(death).startswith("ended by Ray in key, for its machine was nearly out of memory: run fewer workers")


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
