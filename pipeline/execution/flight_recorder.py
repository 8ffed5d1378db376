"""What a worker was at when it died: it notes stage and rows before each step, and its last frames as it crashes.

Both are files below Ray's session folder on the worker's machine, since nothing in memory outlives a crash. The driver
reads them where it can, and has them read on the other machine where it cannot.
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

_ANSWER_S = 15.0  # for a process on another machine to start and read


@dataclass(frozen=True)
class Station:
    """Where a worker lives and where its files lie: `{path}.json` and `{path}.crash`."""

    node: str
    path: Path


@dataclass(frozen=True)
class Recording:
    """What a worker has left, or says while it works.

    Attributes:
        stage: what it is at; empty between two blocks.
        row_ids: the rows that it is at.
        passed: stage -> rows of its present block that have come through it alive.
        for_s: how long it has been at this stage, in seconds.
        crash: what faulthandler wrote as it crashed, or the frames of an `os._exit`; empty otherwise.
        exit_code: that of an `os._exit`.
    """

    stage: str = ""
    row_ids: tuple[str, ...] = ()
    passed: Mapping[str, int] = field(default_factory=dict)
    for_s: float = 0.0
    crash: str = ""
    exit_code: int | None = None


class FlightRecorder:
    """The worker's side. It lives as long as the process: faulthandler writes to a file of its own."""

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
        faulthandler.enable(self._crash)  # all threads: one of a native library's has no Python frames
        os._exit = self._exit  # type: ignore[assignment]

    def note(self, stage: str, row_ids: Sequence[str] = ()) -> None:
        """What comes next; a write of a few microseconds, which the death of the process does not undo."""
        self._write({"stage": stage, "row_ids": row_ids, "since": time.time(), "passed": self.passed, "exit": None})

    def rest(self) -> None:
        """The block is done."""
        self.passed.clear()
        self.note("")

    def _write(self, noted: dict[str, Any]) -> None:
        self._noted = noted
        os.pwrite(self._notes, json.dumps(noted).encode() + b"\n", 0)  # the rest of a longer one before does not count

    def _exit(self, code: int) -> None:
        """Leave a trace: unlike a signal, an exit leaves none by itself."""
        if os.getpid() == self._pid:  # a forked child ends this way too
            faulthandler.dump_traceback(self._crash, all_threads=False)
            self._write({**self._noted, "exit": code})
        self._really_exit(code)


def recordings(stations: Sequence[Station], *, timeout_s: float = _ANSWER_S) -> list[Recording | None]:
    """What these workers say or have left; None where their machine is gone or does not answer in time."""
    here = ray.get_runtime_context().get_node_id()
    found: dict[Path, Recording | None] = {s.path: _read(s.path) for s in stations if s.node == here}
    elsewhere: dict[str, list[Path]] = {}
    for station in stations:
        if station.node != here:
            elsewhere.setdefault(station.node, []).append(station.path)
    asked = {node: _asked(node, paths) for node, paths in elsewhere.items()}
    deadline = time.monotonic() + timeout_s
    for node, answer in asked.items():
        with suppress(RayError):
            told = ray.get(answer, timeout=max(0.1, deadline - time.monotonic()))
            found |= dict(zip(elsewhere[node], told, strict=True))
    return [found.get(station.path) for station in stations]


def _asked(node: str, paths: list[Path]) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return _read_all.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(paths)  # type: ignore[attr-defined]


@ray.remote
def _read_all(paths: list[Path]) -> list[Recording | None]:
    return [_read(path) for path in paths]


def _read(path: Path) -> Recording | None:
    try:
        noted = json.loads(_notes(path).read_bytes().partition(b"\n")[0])
        crash = _crash(path).read_text(errors="replace")
    except (OSError, ValueError):  # not there, not ours, or just being written
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
