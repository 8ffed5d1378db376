"""What runs did to a dataset: `_songmill/runs/<id>/run.json` and, as it happens, `events.jsonl` beside it.

A record is never read by songmill to decide anything; it is for people and for their log collectors. What a killed run
leaves of it is shown as far as it goes.
"""

import json
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from schemas.dataset import Layout
from schemas.storage.growing import growing
from schemas.storage.local import LocalStore

_KEPT = 100  # records of earlier runs
_VERSIONS = ("songmill", "ray", "pyarrow", "torch", "numpy")
_EVERY_S = 10.0
_SILENT_S = 300.0  # of a run in a bucket, which has no lock to ask for, until it counts as killed
_READERS = 16  # of records, side by side
_LOOK_EVERY_S = {True: 0.5, False: 10.0}  # by whether it is a folder
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

    def __init__(self, info: RunInfo, layout: Layout) -> None:
        self.info = info
        self._layout = layout
        self._told = float("-inf")
        self._events = growing(layout.store, _name(layout, info, _EVENTS))
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
        self._events.add(json.dumps(line | facts, default=str))

    def end(self, outcome: str, error: str = "") -> None:
        """The run is over."""
        self.event("run_ended", outcome=outcome, error=error, **self.info.facts)
        self.info = self.info.model_copy(update={"ended": datetime.now(UTC), "outcome": outcome, "error": error})
        self._events.close()
        self._save()

    def _save(self) -> None:
        with suppress(OSError):
            self._layout.store.put(_name(self._layout, self.info, _RUN), self.info.model_dump_json(indent=1).encode())


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
    record = RunRecord(info, layout)
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
    layout.store.refresh()
    names = [name for name in layout.store.put_names(layout.runs) if name.endswith(f"/{_RUN}")]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda name: _read(layout, name), names)
        return [run for run in found if run is not None]


def state(layout: Layout, run: RunInfo, latest: RunInfo) -> str:
    """`finished`, `failed`, `interrupted`, `running`, or `killed` if it ended without a word.

    Args:
        layout: the dataset.
        run: which run.
        latest: the latest one: it alone may be running.
    """
    if run.outcome:
        return run.outcome
    return "running" if run.id == latest.id and _goes_on(layout, run) else "killed"


def events(layout: Layout, run: RunInfo) -> Iterator[dict[str, Any]]:
    """The events of a run so far."""
    with suppress(OSError):
        yield from _parsed(layout.store.get(_name(layout, run, _EVENTS)))


def follow(layout: Layout, run: RunInfo, *, every_s: float | None = None) -> Iterator[dict[str, Any]]:
    """The events of a run as they happen, until it ends or is killed."""
    wait_s = _LOOK_EVERY_S[isinstance(layout.store, LocalStore)] if every_s is None else every_s
    seen = 0
    while True:
        is_over = not _goes_on(layout, run)  # asked first, so that what is written until then is read below
        new = layout.store.get(_name(layout, run, _EVENTS))[seen:]
        whole = new if is_over else new[: new.rfind(b"\n") + 1]
        yield from _parsed(whole)
        if is_over:
            return
        seen += len(whole)
        time.sleep(wait_s)


def _name(layout: Layout, run: RunInfo, file: str) -> str:
    return f"{layout.runs}/{run.id}/{file}"


def _read(layout: Layout, name: str) -> RunInfo | None:
    with suppress(OSError, ValidationError):
        return RunInfo.model_validate_json(layout.store.get(name))
    return None


def _parsed(lines: bytes) -> Iterator[dict[str, Any]]:
    for line in lines.splitlines():
        with suppress(ValueError):  # a killed run may leave half a line
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _goes_on(layout: Layout, run: RunInfo) -> bool:
    if isinstance(layout.store, LocalStore):
        return layout.store.is_locked()
    told = list(events(layout, run))
    if told and told[-1]["event"] == "run_ended":
        return False
    last = datetime.fromisoformat(told[-1]["time"]) if told else run.started
    return (datetime.now(UTC) - last).total_seconds() < _SILENT_S


def _sweep(layout: Layout) -> None:
    files = layout.store.put_names(layout.runs)
    kept = {*sorted({_id(layout, name) for name in files})[-_KEPT:]}
    with suppress(OSError):
        layout.store.discard([name for name in files if _id(layout, name) not in kept])


def _id(layout: Layout, name: str) -> str:
    return name.removeprefix(f"{layout.runs}/").partition("/")[0]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
