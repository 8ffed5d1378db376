"""The first run on a machine: nothing compiled yet, several workers at once, and caches that others have damaged."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.registry import ENGINES
from tests.support.audio import write
from tests.support.command import environment, inspected, songmill
from tests.support.places import ROOT
from tests.support.tracks import load

# Dies as a process does that calls into a damaged cache of compiled code.
CRASH = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
INSTRUMENTALS = ("calm_acoustic_1", "happy_electronic_1", "tender_electronic_1")


@pytest.fixture
def poisoned(tmp_path: Path) -> str:
    """A PYTHONPATH on which whatever keeps a JIT cache in its package folder ends the process that imports it."""
    for package in ("numba", "librosa", "llvmlite"):
        (tmp_path / "poison" / package).mkdir(parents=True)
        (tmp_path / "poison" / package / "__init__.py").write_text(CRASH)
    return os.pathsep.join([str(tmp_path / "poison"), str(ROOT)])


def test_processes_have_jit_caches_of_their_own_and_clear_those_of_the_dead(tmp_path: Path) -> None:
    script = (
        "import os, pathlib; from pipeline.execution.jit_cache import use_own_jit_cache as use; use();"
        "own = pathlib.Path(os.environ['NUMBA_CACHE_DIR']); print(own, flush=True); own.mkdir(parents=True); input()"
    )
    env = environment(XDG_CACHE_HOME=str(tmp_path))
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    caches, running = [], []
    for _ in range(2):
        running.append(subprocess.Popen([sys.executable, "-c", script], **pipe))
        caches.append(Path(running[-1].stdout.readline().strip()))
    assert caches[0] != caches[1]
    assert caches[0].parent == caches[1].parent == tmp_path / "songmill" / "jit"
    running[0].kill()
    running[0].wait()
    third = subprocess.Popen([sys.executable, "-c", script], **pipe)
    third.stdout.readline()
    third.communicate("\n")
    running[1].communicate("\n")
    assert not caches[0].exists()
    assert caches[1].exists()  # it was still at work


def test_no_engine_imports_what_keeps_a_jit_cache(poisoned: str) -> None:
    modules = sorted({path.partition(":")[0] for engines in ENGINES.values() for path in engines.values()})
    script = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    environ = environment(PYTHONPATH=poisoned)
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
def test_stages_that_analyse_harmony_work_beside_damaged_caches(
    poisoned: str, audio: Callable[[str, str], Path], tmp_path: Path
) -> None:
    (tmp_path / "songs").mkdir()
    write(tmp_path / "songs" / "song.flac", load(audio("demo-music", "happy_electronic_1.opus"), seconds=8))
    out = tmp_path / "dataset"
    songmill("curate", tmp_path / "songs", "--out", out, "--stages", "decode,rhythm,key", PYTHONPATH=poisoned)
    assert inspected(out)["rows"]["kept"] == 1


@pytest.mark.ray
@pytest.mark.slow
def test_twenty_first_runs_of_three_workers_lose_none(
    poisoned: str, audio: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """The whole small profile on four songs; byte code and machine code are compiled anew every time."""
    songs = tmp_path / "songs"
    songs.mkdir()
    for name in INSTRUMENTALS:
        write(songs / f"{name}.flac", load(audio("demo-music", f"{name}.opus"), seconds=10))
    write(songs / "sung.flac", load(audio("demo-songs", "audio_ace_step_1_5_split_4b-1.mp3"), seconds=10, start_s=8))
    for run in range(20):
        cold = {"NUMBA_CACHE_DIR": str(tmp_path / f"jit-{run}"), "PYTHONPYCACHEPREFIX": str(tmp_path / f"bytes-{run}")}
        out = tmp_path / f"dataset-{run}"
        _, said = songmill(
            *("curate", songs, "--out", out, "--set", "resources.workers=3"), PYTHONPATH=poisoned, **cold
        )
        rows = inspected(out)["rows"]
        assert (rows["kept"], rows["filtered"], rows["failed"]) == (4, 0, 0), f"run {run}: {rows}\n{said}"
        assert not any((out / "quarantine").glob("*"))
