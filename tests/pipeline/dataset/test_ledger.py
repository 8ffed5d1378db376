"""Commits survive a kill at every point between a temporary file and its record."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import schemas.files
from pipeline.dataset.ledger import Ledger
from schemas.commits import Commit, RowState, read_records
from schemas.dataset import Layout


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def commit(layout: Layout, unit: int, rows: list[str], supersedes: int | None = None) -> tuple[Commit, dict[str, Path]]:
    final = f"shards/train-{unit:06d}.parquet"
    temporary = layout.store.scratch / f"{unit}.parquet"
    temporary.write_text(f"unit {unit}")
    states = {row: RowState(status="kept", track_id=row, basis=row) for row in rows}
    record = Commit(unit=unit, plan="p", files={final: "digest"}, rows=states, timings={}, supersedes=supersedes)
    return record, {final: temporary}


def shards(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "shards").iterdir())


def opened(root: Path) -> Ledger:
    """As a process that begins to write; the lock is given back at once, for the test to look in between."""
    layout = Layout.at(root)
    with layout.store.writing():
        return Ledger(layout).open()


def test_a_commit_is_there_after_opening_again(tmp_path):
    ledger = opened(tmp_path)
    ledger.add(*commit(ledger.layout, 0, ["a", "b"]))
    again = opened(tmp_path)
    assert set(again.rows) == {"a", "b"}
    assert again.next_unit == 1
    assert shards(tmp_path) == ["train-000000.parquet"]


def test_files_without_a_record_and_temporaries_are_swept_and_strangers_stay(tmp_path):
    layout = Layout.at(tmp_path)
    opened(tmp_path).add(*commit(layout, 0, ["a"]))
    (tmp_path / "shards/train-000001.parquet").write_text("renamed, but killed before its record")
    (tmp_path / "features/ssl").mkdir(parents=True)
    (tmp_path / "features/ssl/train-000001.parquet").write_text("likewise")
    (tmp_path / "_songmill/tmp/left.parquet").write_text("half")
    (tmp_path / "shards/notes.txt").write_text("the user's")
    drafts = [
        tmp_path / "_songmill" / name
        for name in (".plan.json.01234567.tmp", "commits/.000001.json.01234567.tmp", ".forgotten.parquet.01234567.tmp")
    ]
    for draft in drafts:
        draft.write_text("half")
    (tmp_path / "_songmill/.marks.parquet.01234567.tmp").write_text("being written by another process")
    (tmp_path / ".song.wav.tmp").write_text("the user's")
    opened(tmp_path)
    assert shards(tmp_path) == ["notes.txt", "train-000000.parquet"]
    assert not list((tmp_path / "_songmill/tmp").iterdir())
    assert not (tmp_path / "features/ssl/train-000001.parquet").exists()
    assert not any(draft.exists() for draft in drafts)
    assert (tmp_path / "_songmill/.marks.parquet.01234567.tmp").exists()
    assert (tmp_path / ".song.wav.tmp").exists()


def test_reading_changes_nothing_on_disk(tmp_path):
    opened(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/train-000001.parquet").write_text("not committed yet")
    Ledger(Layout.at(tmp_path)).read()
    assert shards(tmp_path) == ["train-000001.parquet"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(killed_at=st.integers(0, 12))
def test_killed_at_any_step_of_replacing_a_unit_each_row_counts_once(tmp_path_factory, killed_at):
    root = tmp_path_factory.mktemp("dataset")
    ledger = opened(root)
    layout = ledger.layout
    ledger.add(*commit(layout, 0, ["a", "b"]))
    successor = commit(layout, 1, ["a", "b"], supersedes=0)
    with pytest.MonkeyPatch.context() as patch:
        _kill_before_change(patch, killed_at)
        try:
            ledger.add(*successor)
            finished = True
        except Killed:
            finished = False
    after = opened(root)
    assert sorted(after.rows) == ["a", "b"]
    assert len(after.commits) == 1
    (unit,) = after.commits
    assert shards(root) == [f"train-{unit:06d}.parquet"]
    assert (root / f"shards/train-{unit:06d}.parquet").read_text() == f"unit {unit}"
    assert unit == 1 or not finished


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(killed_at=st.integers(0, 20))
def test_killed_at_any_step_of_splitting_a_unit_each_row_counts_once(tmp_path_factory, killed_at):
    root = tmp_path_factory.mktemp("dataset")
    ledger = opened(root)
    layout = ledger.layout
    ledger.add(*commit(layout, 0, ["a", "b"]))
    apart, rest = (commit(layout, unit, [row], supersedes=0) for unit, row in ((1, "b"), (2, "a")))
    with pytest.MonkeyPatch.context() as patch:
        _kill_before_change(patch, killed_at)
        try:
            ledger.split(apart, rest)
            finished = True
        except Killed:
            finished = False
    units = {record.unit for record in read_records(layout)}
    after = opened(root)
    assert units == after.commits.keys()
    assert units == {1, 2} or (units == {0} and not finished)
    assert sorted(row for record in after.commits.values() for row in record.rows) == ["a", "b"]
    assert shards(root) == [f"train-{unit:06d}.parquet" for unit in sorted(units)]


def _kill_before_change(patch: pytest.MonkeyPatch, step: int) -> None:
    """Raise in place of the `step`-th change on disk."""
    left = iter(range(step, -1, -1))

    def dying(change):
        def maybe(*args, **kwargs):
            if next(left, 0) == 0:  # the dead change nothing any more
                raise Killed
            return change(*args, **kwargs)

        return maybe

    for name in ("replace", "unlink", "write_bytes"):
        patch.setattr(Path, name, dying(getattr(Path, name)))
    patch.setattr(schemas.files.os, "fsync", dying(schemas.files.os.fsync))


def feature(layout: Layout, ledger: Ledger, unit: int, content: str) -> tuple[Commit, dict[str, Path]]:
    final = f"features/ssl/train-{unit:06d}.parquet"
    temporary = layout.store.scratch / f"ssl-{content}.parquet"
    temporary.write_text(content)
    old = ledger.commits[unit]
    return old.model_copy(update={"plan": content, "files": {**old.files, final: content}}), {final: temporary}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(killed_at=st.integers(0, 12), replaces=st.booleans())
def test_killed_at_any_step_of_adding_a_feature_the_shard_stands_and_records_tell_the_truth(
    tmp_path_factory, killed_at, replaces
):
    root = tmp_path_factory.mktemp("dataset")
    ledger = opened(root)
    layout = ledger.layout
    ledger.add(*commit(layout, 0, ["a", "b"]))
    if replaces:
        ledger.amend(*feature(layout, ledger, 0, "old"))
    changed = feature(layout, ledger, 0, "new")
    with pytest.MonkeyPatch.context() as patch:
        _kill_before_change(patch, killed_at)
        try:
            ledger.amend(*changed)
            finished = True
        except Killed:
            finished = False
    after = opened(root)
    shard, path = root / "shards/train-000000.parquet", root / "features/ssl/train-000000.parquet"
    assert shard.read_text() == "unit 0"
    assert sorted(after.rows) == ["a", "b"]
    named = after.commits[0].files.get(str(path.relative_to(root)))
    assert named == (path.read_text() if path.exists() else None)
    assert after.commits[0].plan == (named or ("" if replaces else "p"))
    assert named == "new" or not finished
