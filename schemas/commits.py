"""Commit records: one a unit, JSON, which says what files and rows the unit has and what they took.

A file without a record does not count, and of a unit and its successor only the successor does.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel

from schemas.dataset import Layout

NO_PLAN = ""  # of a unit one of whose files is being replaced


@dataclass(slots=True)  # there is one of every row in memory, and a model takes twice as much
class RowState:
    """Where a row ended, and what that rests on.

    Attributes:
        basis: digest of its identity and of what it is a copy of (see `pipeline.ingest.identity.basis`).
        mark: what a person had said of it (see `pipeline.dataset.marks`).
        first_seen: of a row that is not kept: since when; None for datasets that did not note it.
        tries: how often it has been worked on with this outcome.
    """

    status: str
    track_id: str | None
    basis: str
    mark: str | None = None
    first_seen: datetime | None = None
    tries: int = 1


class StageTime(BaseModel):
    """What one stage took over the rows of a unit."""

    rows: int = 0
    seconds: float = 0.0
    audio_s: float = 0.0


class Record(BaseModel):
    """What a commit record says of its unit, but for the rows.

    Attributes:
        supersedes: unit that no longer counts since this one does.
        split_from: unit that this one holds some rows of; it counts once that unit does not.
    """

    unit: int
    plan: str
    files: dict[str, str]  # name -> sha256
    timings: dict[str, StageTime]
    supersedes: int | None = None
    split_from: int | None = None
    committed_at: datetime | None = None


class Commit(Record):
    """One unit that is done: files by their names, rows by id."""

    rows: dict[str, RowState]


_AnyRecord = TypeVar("_AnyRecord", bound=Record)


def read_commits(layout: Layout) -> list[Commit]:
    """The records that count, in the order of their units; none where there is no dataset."""
    return _counting(_read(layout, Commit))


def read_records(layout: Layout) -> list[Record]:
    """The same without their rows, which are most of a record: for whoever wants files and times."""
    return _counting(_read(layout, Record))


def committed_files(layout: Layout) -> dict[str, str]:
    """Name -> SHA-256 of every file that counts."""
    return {name: digest for record in read_records(layout) for name, digest in record.files.items()}


def _read(layout: Layout, model: type[_AnyRecord]) -> list[_AnyRecord]:
    store = layout.store
    store.refresh()
    names = [name for name in store.names(layout.commits) if name.endswith(".json")]
    return [model.model_validate_json(store.get(name)) for name in names]


def _counting(records: list[_AnyRecord]) -> list[_AnyRecord]:
    replaced = {record.supersedes for record in records}
    standing = [record for record in records if record.unit not in replaced]
    units = {record.unit for record in standing}
    return [record for record in standing if record.split_from not in units]
