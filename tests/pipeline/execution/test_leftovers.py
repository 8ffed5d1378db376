"""A killed run leaves no process behind."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.audio import tone, write
from tests.support.command import start


@pytest.mark.ray
def test_no_process_of_a_killed_run_is_alive_ten_seconds_later(tmp_path: Path):
    songs = tmp_path / "songs"
    songs.mkdir()
    for number in range(3):
        write(songs / f"{number}.flac", tone(440 + 100 * number, 8))
    run = start("curate", songs, "--out", tmp_path / "dataset", "--stages", "decode,quality", "--quiet")
    children: list[psutil.Process] = []
    while sum("gent" in name for name in _names(children)) < 2:  # Ray's dashboard and environment agents
        assert run.poll() is None, run.communicate()
        children = psutil.Process(run.pid).children(recursive=True)
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not _names(alive)


def _names(processes: list[psutil.Process]) -> list[str]:
    found = []
    for process in processes:
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
