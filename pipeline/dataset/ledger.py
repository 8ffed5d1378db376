"""The ledger: the committed units of a dataset. Only the driver commits; a file without a commit record is ignored.

A unit is published: its files first, then its record, and last what it replaces is removed. If the process is killed in
between, the next run removes the files without a record and processes the rows again. For the format of the records and
which of them are valid see `schemas.commits`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from schemas.commits import NO_PLAN, Commit, RowState, read_commits
from schemas.dataset import FEATURES, Layout, unit_of

_log = logging.getLogger("songmill.ledger")


class Ledger:
    """All commits of a dataset, in memory and as they are stored."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.commits: dict[int, Commit] = {}

    def open(self) -> "Ledger":
        """Open for writing: read the records, and remove uncommitted files of earlier processes.

        Like everything that changes a ledger, it is for whoever holds the right to write.
        """
        self.read()
        self._sweep()
        return self

    def read(self) -> "Ledger":
        """Read the records without changing anything; a unit that another one supersedes is ignored."""
        self.commits = {commit.unit: commit for commit in read_commits(self.layout)}
        return self

    def add(self, commit: Commit, temporary: dict[str, Path]) -> None:
        """Commit a unit.

        Args:
            commit: its record.
            temporary: name -> current path of the file.
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
            temporary: name -> current path of the file.
        """
        old = self.commits[-1 if commit.supersedes is None else commit.supersedes]
        if commit.rows:
            self._replace(commit, temporary, old)
        else:
            del self.commits[old.unit]
            self.layout.store.publish({}, [self.layout.commit_file(old.unit), *old.files])

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
        replaced = [*old.files, self.layout.commit_file(old.unit)] if old else []
        self._publish(commit, temporary, replaced)
        if old:
            del self.commits[old.unit]

    def amend(self, commit: Commit, temporary: dict[str, Path]) -> None:
        """Add or replace files of a committed unit; its shard and quarantine do not change.

        Files to be replaced are removed from the record first, so that a record never names bytes that do not exist.
        Until the new record is written the unit belongs to no plan.

        Args:
            commit: the unit's new record.
            temporary: name -> current path of the file.
        """
        old = self.commits[commit.unit]
        if replaced := old.files.keys() & temporary.keys():
            rest = {name: digest for name, digest in old.files.items() if name not in replaced}
            self._publish(old.model_copy(update={"files": rest, "plan": NO_PLAN}), {})
        self._publish(commit, temporary)

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
        """Names of all committed files."""
        return [name for commit in self.commits.values() for name in commit.files]

    def _publish(self, commit: Commit, temporary: Mapping[str, Path], replaced: Sequence[str] = ()) -> None:
        record = commit.model_dump_json(exclude_defaults=True).encode()
        self.layout.store.publish({**temporary, self.layout.commit_file(commit.unit): record}, replaced)
        self.commits[commit.unit] = commit

    def _sweep(self) -> None:
        """Remove unit files that are in no record, and records of superseded units."""
        layout, known = self.layout, {*self.files}
        valid = {layout.commit_file(unit) for unit in self.commits}
        strays = [name for name in unit_files(layout) if name not in known]
        records = [name for name in layout.store.names(layout.commits) if name.endswith(".json")]
        layout.store.publish({}, [*strays, *(name for name in records if name not in valid)])


def _count_tries(commit: Commit, old: Commit | None) -> None:
    for row_id, state in commit.rows.items():
        if state.status == "kept":
            continue
        state.first_seen = commit.committed_at
        before = old.rows.get(row_id) if old else None
        if before and before.status == state.status:
            state.first_seen = before.first_seen
            state.tries = before.tries + 1


def unit_files(layout: Layout) -> Iterator[str]:
    """Names of all files of a dataset that are named as those of units, committed or not."""
    for folder in (layout.shards, layout.quarantine, *(layout.features(name) for name in FEATURES)):
        yield from (name for name in layout.store.names(folder) if unit_of(name) is not None)
