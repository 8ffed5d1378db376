"""Every command ends with a sentence and an exit code where a user can mend what is wrong, and when a signal comes."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli import app as songmill_app
from pipeline.commands.exit_codes import Commands
from pipeline.dataset.verification import verify_dataset
from schemas.dataset import Layout
from schemas.files import naming
from tests.support.command import asked, inspected
from tests.support.places import ROOT
from tests.support.rows import row, write_rows


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A limit of the operating system, whose writes fail as those of a full disk do, but with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def ended(error: BaseException) -> tuple[int, str]:
    """Exit code and stderr of a command that ends so."""
    app = typer.Typer(cls=Commands)

    @app.command()
    def one() -> None:
        raise error

    @app.command()
    def two() -> None:
        pass

    result = CliRunner().invoke(app, ["one"])
    return result.exit_code, result.stderr


def test_a_disk_that_cannot_be_written():
    full = OSError(errno.ENOSPC, "says the library")
    assert ended(full) == (
        1,
        "error: No space left on device; what is complete stands: make room, and the same command goes on\n",
    )
    with pytest.raises(OSError, match="No space") as raised, naming(Path("dataset/shards")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert ended(raised.value)[1].startswith("error: dataset/shards: No space left on device; ")


def test_an_error_that_nobody_can_mend_keeps_its_traceback():
    app = typer.Typer(cls=Commands)
    app.command("one")(lambda: Path("/no/such/file").read_text())
    app.command("two")(lambda: None)
    assert isinstance(CliRunner().invoke(app, ["one"]).exception, FileNotFoundError)


@pytest.fixture
def pythons_own_ctrl_c() -> Iterator[None]:
    """Ray Train, where a test has trained in this process, has left a handler of its own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_own_ctrl_c")
def test_sigterm_ends_a_command_as_ctrl_c_does():
    app = typer.Typer(cls=Commands)
    app.command("stops")(lambda: os.kill(os.getpid(), signal.SIGTERM))
    app.command("waits")(lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGTERM)
    terminated, interrupted = CliRunner().invoke(app, ["stops"]), CliRunner().invoke(app, ["waits"])
    assert (terminated.exit_code, terminated.stderr) == (143, "error: interrupted\n")
    assert (interrupted.exit_code, interrupted.stderr) == (130, "error: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_outputs_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "songs").mkdir()
    (tmp_path / "songs" / "a.wav").write_bytes(b"no audio")
    file = tmp_path / "file"
    file.write_text("somebody's")
    dataset = Path(write_rows(tmp_path / "dataset", [row(1)]).url)
    for out in (file, file / "below"):
        said = asked("curate", tmp_path / "songs", "--out", out, "--stages", "decode", code=1)
        assert said.startswith(f"error: {out}")
        assert "Not a directory; what is complete stands: name another place" in " ".join(said.split())
        html = asked("inspect", dataset, "--html", file / "page.html", code=1)
        assert f"{file}" in html
    assert file.read_text() == "somebody's"


def test_a_disk_that_is_full_in_the_middle_loses_nothing(tmp_path: Path):
    dataset = Path(write_rows(tmp_path / "dataset", [row(number, title="x" * 50) for number in range(40)]).url)
    forget = ("forget", dataset, "--track", f"{7:032x}", "--yes")
    before = verify_dataset(Layout.at(dataset))  # rows written by hand lack a version, and nothing else
    for size in (100, 2_000, 5_000, 100_000):
        with files_no_larger_than(size):
            result = CliRunner().invoke(songmill_app, [*map(str, forget)])
        if result.exit_code == 0:
            break
        assert result.exit_code == 1, result.exception
        assert result.stderr.startswith(f"error: {dataset}/")
        assert "File too large; what is complete stands: make room" in result.stderr
        assert verify_dataset(Layout.at(dataset)) == before
    assert size > 100
    assert result.exit_code == 0, result.stderr
    assert all("schema version None" in problem for problem in verify_dataset(Layout.at(dataset)))
    assert inspected(dataset)["rows"]["kept"] == 39
    assert not [*dataset.rglob("*.tmp")]


STUBBORN = """
import signal, subprocess, sys, time
from pipeline.console.interrupts import ends_on_signal
signal.signal(signal.SIGINT, lambda *_: None)  # as good as a call below Python, which does not hear of it either
child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
with ends_on_signal(grace_s=0.3):
    print(child.pid, flush=True)
    time.sleep(50)
"""
WILLING = """
import time
from pipeline.console.interrupts import ends_on_signal
try:
    with ends_on_signal(grace_s=30):
        print(0, flush=True)
        time.sleep(50)
except KeyboardInterrupt:
    print("cleaned up", flush=True)
"""


def _signalled(code: str) -> tuple[int, str, str, int]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored, if this runs in the background
    )
    assert process.stdout
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err, child


def test_a_block_that_does_not_end_is_killed_with_its_children():
    code, _, err, child = _signalled(STUBBORN)
    assert code == 130
    assert err == "error: stopped; run the same command again to continue from what is committed\n"
    deadline = time.monotonic() + 120
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_block_that_ends_is_left_alone():
    assert _signalled(WILLING)[:3] == (0, "cleaned up\n", "")
