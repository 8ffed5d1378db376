"""Flight recorder: what a worker was doing when it died.

A worker writes the current stage and rows to a file before each step, and faulthandler writes its stack to another file
when it crashes. Both are below Ray's session folder on the worker's machine, since files survive a crash. The driver
reads them directly on its own machine, and through a Ray task on other machines.
"""

import faulthandler
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ANSWER_S = 15.0  # timeout for starting a task on another machine and reading the files


@dataclass(frozen=True)
class Station:
    """Location of a worker: its Ray node id, and the path of its files `{path}.json` and `{path}.crash`."""

    node: str
    path: Path


@dataclass(frozen=True)
class Recording:
    """The recorded state of a worker, running or dead.

    Attributes:
        stage: its current stage; empty between two blocks.
        row_ids: ids of the rows it is processing.
        passed: stage -> number of rows of the current block that have completed it.
        for_s: seconds since the current stage began.
        crash: faulthandler's output after a crash, or the stack of an `os._exit`; otherwise empty.
        exit_code: code of an `os._exit`, else None.
    """

    stage: str = ""
    row_ids: tuple[str, ...] = ()
    passed: Mapping[str, int] = field(default_factory=dict)
    for_s: float = 0.0
    crash: str = ""
    exit_code: int | None = None


class FlightRecorder:
    """Records in the worker. It must live as long as the process since faulthandler keeps writing to its file.

    Attributes:
        station: location of the worker's files.
        passed: stage -> number of rows of the current block that have completed it.
    """

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        folder = Path(context.get_temp_dir()) / context.get_session_name() / "songmill"
        folder.mkdir(exist_ok=True)
        self.station = Station(context.get_node_id(), folder / context.get_worker_id())
        self.passed: Counter[str] = Counter()
        self._notes = os.open(_notes(self.station.path), os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        self._crash = _crash(self.station.path).open("w")
        self._pid, self._really_exit = os.getpid(), os._exit
        self.note("")
        faulthandler.enable(self._crash)  # of all threads: a native library's thread has no Python frames
        os._exit = self._exit  # type: ignore[assignment]

    def note(self, stage: str, row_ids: Sequence[str] = ()) -> None:
        """Record the stage and rows that begin now. It takes a few microseconds and survives the process's death."""
        self._write({"stage": stage, "row_ids": row_ids, "since": time.time(), "passed": self.passed, "exit": None})

    def rest(self) -> None:
        """Record that the block is done."""
        self.passed.clear()
        self.note("")

    def _write(self, noted: dict[str, Any]) -> None:
        self._noted = noted
        os.pwrite(self._notes, json.dumps(noted).encode() + b"\n", 0)  # readers ignore everything after the newline

    def _exit(self, code: int) -> None:
        """Replacement of `os._exit` that records the exit, which faulthandler does not."""
        if os.getpid() == self._pid:  # not in a forked child, which also ends with os._exit
            faulthandler.dump_traceback(self._crash, all_threads=False)
            self._write({**self._noted, "exit": code})
        self._really_exit(code)


def recordings(stations: Sequence[Station], *, timeout_s: float = _ANSWER_S) -> list[Recording | None]:
    """Read the recordings of these workers; None where the machine is gone or does not answer within `timeout_s`."""
    here = ray.get_runtime_context().get_node_id()
    found: dict[Path, Recording | None] = {s.path: _read(s.path) for s in stations if s.node == here}
    elsewhere: dict[str, list[Path]] = {}
    for station in stations:
        if station.node != here:
            elsewhere.setdefault(station.node, []).append(station.path)
    tasks = {node: _read_on(node, paths) for node, paths in elsewhere.items()}
    deadline = time.monotonic() + timeout_s
    for node, task in tasks.items():
        with suppress(RayError):
            there = ray.get(task, timeout=max(0.1, deadline - time.monotonic()))
            found |= dict(zip(elsewhere[node], there, strict=True))
    return [found.get(station.path) for station in stations]


def _read_on(node: str, paths: list[Path]) -> ray.ObjectRef:
    on_node = NodeAffinitySchedulingStrategy(node, soft=False)
    return _read_all.options(num_cpus=0, max_retries=0, scheduling_strategy=on_node).remote(paths)  # type: ignore[attr-defined]


@ray.remote
def _read_all(paths: list[Path]) -> list[Recording | None]:
    return [_read(path) for path in paths]


def _read(path: Path) -> Recording | None:
    try:
        noted = json.loads(_notes(path).read_bytes().partition(b"\n")[0])
        crash = _crash(path).read_text(errors="replace")
    except (OSError, ValueError):  # missing, not readable, or being written
        return None
    return Recording(
        stage=noted["stage"],
        row_ids=tuple(noted["row_ids"]),
        passed=noted["passed"],
        for_s=max(0.0, time.time() - noted["since"]),
        crash=crash,
        exit_code=noted["exit"],
    )


def _notes(path: Path) -> Path:
    return path.with_suffix(".json")


def _crash(path: Path) -> Path:
    return path.with_suffix(".crash")
