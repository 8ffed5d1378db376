"""The real command line in a process of its own."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner

from pipeline.cli import app
from tests.support.places import ROOT


def environment(**more: str) -> dict[str, str]:
    """This process's environment; workers find the toy stages through the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def cold_caches(folder: Path) -> dict[str, str]:
    """What to set in the environment so that no compiled code of an earlier run is found: Python's and Numba's."""
    return {"NUMBA_CACHE_DIR": str(folder / "numba"), "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def start(*arguments: object, module: str = "pipeline.cli", **env: str) -> subprocess.Popen[str]:
    """`songmill ARGUMENTS`, running; the module is the command line, or one that changes it for a test."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def songmill(*arguments: object, code: int = 0, **env: str) -> tuple[str, str]:
    """Run `songmill ARGUMENTS` to its end; its stdout and stderr. Fails unless it exits with `code`."""
    process = start(*arguments, **env)
    out, err = process.communicate(timeout=840)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out, err


@contextmanager
def ray_cluster(*more: str, **env: str) -> Iterator[dict[str, str]]:
    """A Ray cluster of two CPUs on this machine; what to set in the environment to use it.

    Args:
        more: options of `ray start`.
        env: what else to set in the environment of its processes.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray = Path(sys.executable).with_name("ray")
    options = [
        "--head",
        "--block",
        "--port=0",
        "--num-cpus=2",
        "--include-dashboard=false",
        "--disable-usage-stats",
        *more,
    ]
    process = subprocess.Popen(
        [ray, "start", *options],
        env=environment(PYTHONUNBUFFERED="1", **token, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    try:
        yield {"RAY_ADDRESS": _address(process), **token}
    finally:
        # Not `ray stop`, which ends every cluster on the machine, those of other tests as well.
        members = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    """Where the cluster listens, as it says itself."""
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"--address='([^']+)'", line):
            return found.group(1)
    raise AssertionError(said)


def kill_when(ready: Callable[[], bool], *arguments: object, module: str = "pipeline.cli", **env: str) -> None:
    """Run `songmill ARGUMENTS` and kill it and its children as soon as `ready` says so."""
    process = start(*arguments, module=module, **env)
    deadline = time.monotonic() + 600
    while not ready():
        assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    for child in children:
        if child.is_running():
            child.kill()


def asked(*arguments: object, code: int = 0) -> str:
    """`songmill ARGUMENTS` in this process, for commands that start nothing; its stdout, or what it says on stderr."""
    out, err = invoked(*arguments, code=code)
    return err or out


def invoked(*arguments: object, code: int = 0) -> tuple[str, str]:
    """`songmill ARGUMENTS` in this process; its stdout and stderr. Fails unless it exits with `code`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result.stdout, result.stderr


def inspected(dataset: Path) -> dict[str, Any]:
    """What `songmill inspect --json` says of a dataset."""
    return json.loads(asked("inspect", dataset, "--json"))


def queried(dataset: Path, sql: str) -> list[dict[str, Any]]:
    """Rows of a query over `tracks` and `quarantine`."""
    return json.loads(asked("inspect", dataset, "--sql", sql, "--json"))
