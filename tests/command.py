"""The real command line in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from pipeline.cli import app

ROOT = Path(__file__).parent.parent


def environment(**more: str) -> dict[str, str]:
    """This process's environment; workers find the toy stages through the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def start(*arguments: object, **env: str) -> subprocess.Popen[str]:
    """`songmill ARGUMENTS`, running."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def songmill(*arguments: object, code: int = 0, **env: str) -> tuple[str, str]:
    """Run `songmill ARGUMENTS` to its end; its stdout and stderr. Fails unless it exits with `code`."""
    process = start(*arguments, **env)
    out, err = process.communicate(timeout=230)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out, err


def asked(*arguments: object, code: int = 0) -> str:
    """`songmill ARGUMENTS` in this process, for commands that start nothing; its stdout, or what it says on stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result.stderr or result.stdout


def inspected(dataset: Path) -> dict[str, Any]:
    """What `songmill inspect --json` says of a dataset."""
    return json.loads(asked("inspect", dataset, "--json"))


def queried(dataset: Path, sql: str) -> list[dict[str, Any]]:
    """Rows of a query over `tracks` and `quarantine`."""
    return json.loads(asked("inspect", dataset, "--sql", sql, "--json"))
