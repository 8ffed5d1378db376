"""Ctrl-C and SIGTERM while a first run starts, scans and curates: `songmill curate DATASET` goes on afterwards."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support import without_workers
from tests.support.audio import write
from tests.support.command import environment, inspected, songmill
from tests.support.places import ROOT
from tests.support.tracks import load

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def songs(audio: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of a real song, long enough to be found at work."""
    folder = tmp_path_factory.mktemp("songs")
    for start_s in (2, 14):
        write(folder / f"{start_s}.flac", load(audio("demo-music", "calm_acoustic_1.opus"), seconds=6, start_s=start_s))
    return folder


def stopped(songs: Path, dataset: Path, number: int, ready: Callable[[psutil.Process], bool]) -> tuple[int, str]:
    """Curate until `ready`, then send a signal as a terminal does, to the whole group; exit code and stderr.

    Fails where a process is left behind.
    """
    settings = [f"resources.{name}=1" for name in ("rows_per_shard", "rows_per_scan_part", "replicas")]
    command = [sys.executable, "-m", "pipeline.cli", "curate", songs, "--out", dataset, "--quiet"]
    command += [
        "--stages",
        "decode,quality,fingerprint",
        *(f"--set={s}" for s in ("audio.min_duration_s=2", *settings)),
    ]
    process = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored, if the tests run in the background
    )
    there = psutil.Process(process.pid)
    deadline = time.monotonic() + 600
    while not ready(there):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = there.children(recursive=True)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=240)
    _, left = psutil.wait_procs(children, timeout=120)
    assert not left
    return process.returncode, err


def _scanned(dataset: Path) -> Callable[[psutil.Process], bool]:
    return lambda _: any(dataset.glob("_songmill/scan/part-*"))


def test_ctrl_c_in_the_first_scan(songs: Path, tmp_path: Path):
    dataset = tmp_path / "dataset"
    code, err = stopped(songs, dataset, signal.SIGINT, _scanned(dataset))
    assert code == 130
    assert "error: interrupted; run the same command again to continue from what is committed" in err
    assert "Traceback" not in err
    without_workers.curated("curate", dataset, "--quiet")
    assert inspected(dataset)["rows"] == {"kept": 2, "filtered": 0, "failed": 0, "total": 2}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("process", ["gcs_server", "raylet", "python"])
def test_a_signal_while_ray_starts(songs: Path, tmp_path: Path, process: str, number: int, code: int):
    def started(there: psutil.Process) -> bool:
        names = []
        for child in there.children(recursive=True):
            try:
                names.append(child.name())
            except psutil.NoSuchProcess:
                continue
        return any(name.startswith(process) for name in names)

    ended, err = stopped(songs, tmp_path / "dataset", number, started)
    assert ended == code
    assert "Traceback" not in err
    songmill("curate", tmp_path / "dataset", "--quiet")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_second_pass(songs: Path, tmp_path: Path, number: int, code: int):
    dataset = tmp_path / "dataset"
    ended, err = stopped(songs, dataset, number, lambda _: any(dataset.glob("_songmill/commits/*.json")))
    assert ended == code
    assert "Traceback" not in err
    songmill("curate", dataset, "--quiet")
    assert inspected(dataset)["rows"]["kept"] == 2
