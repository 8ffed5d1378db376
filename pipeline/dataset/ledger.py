"""What is committed. The driver alone renames files into place and records it; a file without a record does not count.

A unit is committed in two steps: its files are renamed to their final names, then its record appears, atomically.
A process killed between the two leaves files without a record; the next start sweeps them and the rows run again.
What a record says, and which of them count, stands in `schemas.commits`.
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
        """Read the records, finish what an earlier process began, sweep what it left behind."""
        layout = self.layout
        for folder in (layout.shards, layout.quarantine, layout.scan, layout.commits):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(layout.temporary, ignore_errors=True)
        layout.temporary.mkdir(parents=True, exist_ok=True)  # a worker that outlived its driver may be faster
        self.read()
        self._sweep()
        return self

    def read(self) -> "Ledger":
        """Read the records and change nothing on disk; of a unit and its successor only the successor counts."""
        self.commits = {commit.unit: commit for commit in read_commits(self.layout)}
        return self

    def add(self, commit: Commit, temporary: dict[str, Path]) -> None:
        """Commit a unit.

        Args:
            commit: its record.
            temporary: final path inside the dataset -> where the file lies now.
        """
        if old := self.replaced_by(commit):
            commit.timings = {**old.timings, **commit.timings}  # what did not run again took what it took
        commit.committed_at = datetime.now(UTC)
        _count_tries(commit, old)
        self._replace(commit, temporary, old)
        _log.info("unit %d is committed: %d rows, %s", commit.unit, len(commit.rows), ", ".join(commit.files))
        for stage, time in commit.timings.items():
            _log.debug("unit %d: %s took %.2f s over %d rows", commit.unit, stage, time.seconds, time.rows)

    def replaced_by(self, commit: Commit) -> Commit | None:
        """The unit that this one takes the place of, if it has not yet."""
        return None if commit.supersedes is None else self.commits.get(commit.supersedes)

    def rewrite(self, commit: Commit, temporary: dict[str, Path]) -> None:
        """Commit a unit in place of another whose rows were judged anew or left out, but not worked on.

        Args:
            commit: its record, with the states of its rows as they are to stand; without any, the old unit just goes.
            temporary: final path inside the dataset -> where the file lies now.
        """
        old = self.commits[-1 if commit.supersedes is None else commit.supersedes]
        if commit.rows:
            self._replace(commit, temporary, old)
        else:
            del self.commits[old.unit]
            self.layout.commit_file(old.unit).unlink()
            self._remove(old)

    def split(self, apart: tuple[Commit, dict[str, Path]], rest: tuple[Commit, dict[str, Path]]) -> None:
        """Commit a unit's rows as two units.

        Args:
            apart: record and files, as of `rewrite`, of the one that is to stand beside the unit's successor. Both
                count from the moment when the successor's record is there.
            rest: the same of the successor.
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
        """Commit further files of a committed unit; its shard and quarantine stay as they are.

        A file that is replaced leaves the record first: at no moment does a record name bytes that are not there. Until
        the new record is written the unit belongs to no plan.

        Args:
            commit: the unit's new record.
            temporary: final path inside the dataset -> where the file lies now.
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
        """Every committed row."""
        return {row_id: state for commit in self.commits.values() for row_id, state in commit.rows.items()}

    @property
    def next_unit(self) -> int:
        """A number no unit has had."""
        return max(self.commits, default=-1) + 1

    @property
    def files(self) -> list[str]:
        """Every committed file, by path inside the dataset."""
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
        """Delete unit files that no record names, and records of units that others have replaced."""
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
        """What killed processes left beside their files; not of marks, which others may set at any time."""
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
    """Every file of a dataset that has the name of a unit's, committed or not."""
    for folder in (layout.shards, layout.quarantine, *(layout.features(name) for name in FEATURES)):
        yield from (path for path in folder.glob("*.parquet") if unit_of(path) is not None)
