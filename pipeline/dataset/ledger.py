"""The ledger: the committed units of a dataset. Only the driver commits; a file without a commit record is ignored.

A unit is committed in two steps: its files are renamed to their final names, then its record is written atomically. If
the process is killed in between, the next run deletes the files without a record and processes the rows again. For the
format of the records and which of them are valid see `schemas.commits`.
"""

import logging
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from schemas.commits import NO_PLAN, Commit, RowState, read_commits
from schemas.dataset import FEATURES, Layout, unit_of
from schemas.files import drafts, move_durably, write_durably

_log = logging.getLogger("songmill.ledger")


class Ledger:
    """All commits of a dataset, in memory and on disk."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.commits: dict[int, Commit] = {}

    def open(self) -> "Ledger":
        """Open for writing: read the records, and delete uncommitted and temporary files of earlier processes."""
        layout = self.layout
        for folder in (layout.shards, layout.quarantine, layout.scan, layout.commits):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(layout.temporary, ignore_errors=True)
        layout.temporary.mkdir(parents=True, exist_ok=True)  # a worker that outlived its driver may create it first
        self.read()
        self._sweep()
        return self

    def read(self) -> "Ledger":
        """Read the records without changing anything on disk; a unit that another one supersedes is ignored."""
        self.commits = {commit.unit: commit for commit in read_commits(self.layout)}
        return self

    def add(self, commit: Commit, temporary: dict[str, Path]) -> None:
        """Commit a unit.

        Args:
            commit: its record.
            temporary: final path inside the dataset -> current path of the file.
        """
        if old := self.replaced_by(commit):
            commit.timings = {**old.timings, **commit.timings}  # keep the times of stages that did not run again
        commit.committed_at = datetime.now(UTC)
        _count_tries(commit, old)
        self._replace(commit, temporary, old)
        _log.info("unit %d is committed: %d rows, %s", commit.unit, len(commit.rows), ", ".join(commit.files))
        for stage, time in commit.timings.items():
            _log.debug("unit %d: %s took %.2f s over %d rows", commit.unit, stage, time.seconds, time.rows)

    def replaced_by(self, commit: Commit) -> Commit | None:
        """The committed unit that this one replaces, if any."""
        return None if commit.supersedes is None else self.commits.get(commit.supersedes)

    def rewrite(self, commit: Commit, temporary: dict[str, Path]) -> None:
        """Replace a unit by one with changed verdicts or fewer rows, on which no stage ran.

        Args:
            commit: the new record, with the final states of its rows; without rows the old unit is only removed.
            temporary: final path inside the dataset -> current path of the file.
        """
        old = self.commits[-1 if commit.supersedes is None else commit.supersedes]
        if commit.rows:
            self._replace(commit, temporary, old)
        else:
            del self.commits[old.unit]
            self.layout.commit_file(old.unit).unlink()
            self._remove(old)

    def split(self, apart: tuple[Commit, dict[str, Path]], rest: tuple[Commit, dict[str, Path]]) -> None:
        """Replace a unit by two units.

        Args:
            apart: record and files (see `rewrite`) of the additional unit. Both units become valid at the moment when
                the successor's record is written.
            rest: record and files of the old unit's successor.
        """
        commit, temporary = apart
        old = rest[0].supersedes
        self._replace(commit.model_copy(update={"supersedes": None, "split_from": old}), temporary, None)
        self.rewrite(*rest)

    def _replace(self, commit: Commit, temporary: dict[str, Path], old: Commit | None) -> None:
        for final, path in temporary.items():
            move_durably(path, self.layout.root / final)
        self._record(commit)
        if old:
            del self.commits[old.unit]
            self._remove(old)

    def amend(self, commit: Commit, temporary: dict[str, Path]) -> None:
        """Add or replace files of a committed unit; its shard and quarantine do not change.

        Files to be replaced are removed from the record first, so that a record never names bytes that do not exist.
        Until the new record is written the unit belongs to no plan.

        Args:
            commit: the unit's new record.
            temporary: final path inside the dataset -> current path of the file.
        """
        old = self.commits[commit.unit]
        if replaced := old.files.keys() & temporary.keys():
            rest = {name: digest for name, digest in old.files.items() if name not in replaced}
            self._record(old.model_copy(update={"files": rest, "plan": NO_PLAN}))
        for final, path in temporary.items():
            move_durably(path, self.layout.root / final)
        self._record(commit)

    @property
    def rows(self) -> dict[str, RowState]:
        """Row id -> state, of every committed row."""
        return {row_id: state for commit in self.commits.values() for row_id, state in commit.rows.items()}

    @property
    def next_unit(self) -> int:
        """A unit number that no committed unit has."""
        return max(self.commits, default=-1) + 1

    @property
    def files(self) -> list[str]:
        """Paths of all committed files, relative to the dataset's folder."""
        return [path for commit in self.commits.values() for path in commit.files]

    def _record(self, commit: Commit) -> None:
        content = commit.model_dump_json(exclude_defaults=True)
        write_durably(self.layout.commit_file(commit.unit), content.encode())
        self.commits[commit.unit] = commit

    def _remove(self, old: Commit) -> None:
        for path in old.files:
            (self.layout.root / path).unlink(missing_ok=True)
        self.layout.commit_file(old.unit).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete unit files that are in no record, records of superseded units, and unfinished writes."""
        known = {self.layout.root / path for path in self.files}
        for path in unit_files(self.layout):
            if path not in known:
                path.unlink()
        for path in self.layout.commits.glob("*.json"):
            if int(path.stem) not in self.commits:
                path.unlink()
        for path in self._drafts():
            path.unlink()

    def _drafts(self) -> Iterator[Path]:
        """Unfinished writes of killed processes; not of the marks, which other processes may write at any time."""
        yield from drafts(self.layout.commits, "*.json")
        yield from drafts(self.layout.state, "*.json")
        for path in (self.layout.card, self.layout.tombstones):
            yield from drafts(path.parent, path.name)


def _count_tries(commit: Commit, old: Commit | None) -> None:
    for row_id, state in commit.rows.items():
        if state.status == "kept":
            continue
        state.first_seen = commit.committed_at
        before = old.rows.get(row_id) if old else None
        if before and before.status == state.status:
            state.first_seen = before.first_seen
            state.tries = before.tries + 1


def unit_files(layout: Layout) -> Iterator[Path]:
    """Every file of a dataset with a unit's file name, committed or not."""
    for folder in (layout.shards, layout.quarantine, *(layout.features(name) for name in FEATURES)):
        yield from (path for path in folder.glob("*.parquet") if unit_of(path) is not None)
