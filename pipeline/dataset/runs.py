"""What runs did to a dataset: `_songmill/runs/<id>/run.json` and, as it happens, `events.jsonl` beside it.

A record is never read by songmill to decide anything; it is for people and for their log collectors. So it is written
without fsync, and what a killed run leaves of it is shown as far as it goes.
"""

import json
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TextIO

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from schemas.dataset import Layout

_KEPT = 100  # records of earlier runs
_VERSIONS = ("songmill", "ray", "pyarrow", "torch", "numpy")
_EVERY_S = 10.0
_EVENTS = "events.jsonl"
_RUN = "run.json"


class RunInfo(BaseModel):
    """A run as its record tells it.

    Attributes:
        id: start time in UTC and process id; later runs sort behind earlier ones.
        command: `curate` or `add features`.
        plan: id of its plan.
        settings: its configuration.
        versions: of Python and libraries.
        host: where the driver ran.
        pid: of the driver.
        started: time.
        ended: time; None while it runs, or if it was killed.
        outcome: `finished`, `failed` or `interrupted`; empty while it runs, or if it was killed.
        error: what it said as it failed.
        facts: its last counts: rows by verdict, nodes, workers, deaths, repeats.
    """

    id: str
    command: str
    plan: str
    settings: dict[str, Any]
    versions: dict[str, str]
    host: str
    pid: int
    started: datetime
    ended: datetime | None = None
    outcome: str = ""
    error: str = ""
    facts: dict[str, Any] = {}


class Counted(Protocol):
    """Something that counts what a run does."""

    def facts(self) -> dict[str, Any]:
        """The counts."""


class RunRecord:
    """The record of the run at hand."""

    def __init__(self, info: RunInfo, folder: Path) -> None:
        self.info = info
        self._folder = folder
        self._told = float("-inf")
        folder.mkdir(parents=True)
        self._events: TextIO = (folder / _EVENTS).open("w", encoding="utf-8", buffering=1)
        self._save()

    def look(self, counts: Counted) -> None:
        """The counts as they are; a line every ten seconds."""
        self.info.facts.update(counts.facts())
        if time.monotonic() - self._told >= _EVERY_S:
            self._told = time.monotonic()
            self.event("progress", **self.info.facts)

    def event(self, name: str, **facts: Any) -> None:
        """Add a line; a full disk costs the line and not the run."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "run": self.info.id, "event": name}
        with suppress(OSError):
            self._events.write(json.dumps(line | facts, default=str) + "\n")

    def end(self, outcome: str, error: str = "") -> None:
        """The run is over."""
        self.event("run_ended", outcome=outcome, error=error, **self.info.facts)
        self.info = self.info.model_copy(update={"ended": datetime.now(UTC), "outcome": outcome, "error": error})
        self._save()
        with suppress(OSError):
            self._events.close()

    def _save(self) -> None:
        beside = self._folder / f".{_RUN}"
        with suppress(OSError):
            beside.write_text(self.info.model_dump_json(indent=1), encoding="utf-8")
            beside.replace(self._folder / _RUN)


@contextmanager
def recorded(layout: Layout, command: str, plan: str, settings: Mapping[str, Any]) -> Iterator[RunRecord]:
    """Record what happens until the end of the block, and how it ends."""
    started = datetime.now(UTC)
    _sweep(layout)
    info = RunInfo(
        id=f"{started:%Y%m%dT%H%M%S}.{started.microsecond // 1000:03d}Z-{os.getpid()}",
        command=command,
        plan=plan,
        settings=dict(settings),
        versions=_versions(),
        host=socket.gethostname(),
        pid=os.getpid(),
        started=started,
    )
    record = RunRecord(info, layout.runs / info.id)
    record.event("run_started", command=command, plan=plan, host=info.host, pid=info.pid)
    try:
        yield record
    except KeyboardInterrupt:
        record.end("interrupted")
        raise
    except BaseException as error:
        record.end("failed", f"{type(error).__name__}: {error}")
        raise
    record.end("finished")


def read_runs(layout: Layout) -> list[RunInfo]:
    """All runs that are on record, the earliest first; records that cannot be read are left out."""
    runs = []
    for path in sorted(layout.runs.glob(f"*/{_RUN}")):
        with suppress(OSError, ValidationError):
            runs.append(RunInfo.model_validate_json(path.read_bytes()))
    return runs


def state(layout: Layout, run: RunInfo, latest: RunInfo) -> str:
    """`finished`, `failed`, `interrupted`, `running`, or `killed` if it ended without a word.

    Args:
        layout: the dataset.
        run: which run.
        latest: the latest one: it alone may be running.
    """
    if run.outcome:
        return run.outcome
    return "running" if run.id == latest.id and _is_locked(layout) else "killed"


def events(layout: Layout, run: RunInfo) -> Iterator[dict[str, Any]]:
    """The events of a run so far."""
    with suppress(OSError), _events(layout, run).open(encoding="utf-8") as lines:
        for line in lines:
            yield from _parsed(line)


def follow(layout: Layout, run: RunInfo, *, every_s: float = 0.5) -> Iterator[dict[str, Any]]:
    """The events of a run as they happen, until it ends or is killed."""
    with _events(layout, run).open(encoding="utf-8") as lines:
        begun = ""
        while True:
            begun += lines.readline()
            if begun.endswith("\n"):
                yield from _parsed(begun)
                begun = ""
            elif not _is_locked(layout):  # nobody writes any more; what was written in between is read once more
                yield from (event for line in (begun + lines.read()).splitlines() for event in _parsed(line))
                return
            else:
                time.sleep(every_s)


def _events(layout: Layout, run: RunInfo) -> Path:
    return layout.runs / run.id / _EVENTS


def _parsed(line: str) -> Iterator[dict[str, Any]]:
    with suppress(ValueError):  # a killed run may leave half a line
        event = json.loads(line)
        if isinstance(event, dict):
            yield event


def _is_locked(layout: Layout) -> bool:
    try:
        with FileLock(layout.state / "lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a dataset that may only be read
        return False


def _sweep(layout: Layout) -> None:
    for old in sorted(layout.runs.glob("*"))[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
