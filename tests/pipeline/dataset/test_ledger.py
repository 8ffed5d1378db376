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
    final = str(layout.shard_file(unit).relative_to(layout.root))
    temporary = layout.temporary / f"{unit}.parquet"
    temporary.write_text(f"unit {unit}")
    states = {row: RowState(status="kept", track_id=row, basis=row) for row in rows}
    record = Commit(unit=unit, plan="p", files={final: "digest"}, rows=states, timings={}, supersedes=supersedes)
    return record, {final: temporary}


def shards(layout: Layout) -> list[str]:
    return sorted(path.name for path in layout.shards.iterdir())


def test_a_commit_is_there_after_opening_again(tmp_path):
    layout = Layout(tmp_path)
    ledger = Ledger(layout).open()
    ledger.add(*commit(layout, 0, ["a", "b"]))
    again = Ledger(layout).open()
    assert set(again.rows) == {"a", "b"}
    assert again.next_unit == 1
    assert shards(layout) == ["train-000000.parquet"]


def test_files_without_a_record_and_temporaries_are_swept_and_strangers_stay(tmp_path):
    layout = Layout(tmp_path)
    Ledger(layout).open().add(*commit(layout, 0, ["a"]))
    layout.shard_file(1).write_text("renamed, but killed before its record")
    layout.feature_file("ssl", 1).parent.mkdir(parents=True)
    layout.feature_file("ssl", 1).write_text("likewise")
    (layout.temporary / "left.parquet").write_text("half")
    (layout.shards / "notes.txt").write_text("the user's")
    Ledger(layout).open()
    assert shards(layout) == ["notes.txt", "train-000000.parquet"]
    assert not list(layout.temporary.iterdir())
    assert not layout.feature_file("ssl", 1).exists()


def test_reading_changes_nothing_on_disk(tmp_path):
    layout = Layout(tmp_path)
    Ledger(layout).open()
    layout.shard_file(1).write_text("not committed yet")
    Ledger(layout).read()
    assert shards(layout) == ["train-000001.parquet"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(killed_at=st.integers(0, 12))
def test_killed_at_any_step_of_replacing_a_unit_each_row_counts_once(tmp_path_factory, killed_at):
    layout = Layout(tmp_path_factory.mktemp("dataset"))
    ledger = Ledger(layout).open()
    ledger.add(*commit(layout, 0, ["a", "b"]))
    successor = commit(layout, 1, ["a", "b"], supersedes=0)
    with pytest.MonkeyPatch.context() as patch:
        _kill_before_change(patch, killed_at)
        try:
            ledger.add(*successor)
            finished = True
        except Killed:
            finished = False
    after = Ledger(layout).open()
    assert sorted(after.rows) == ["a", "b"]
    assert len(after.commits) == 1
    (unit,) = after.commits
    assert shards(layout) == [f"train-{unit:06d}.parquet"]
    assert layout.shard_file(unit).read_text() == f"unit {unit}"
    assert unit == 1 or not finished


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(killed_at=st.integers(0, 20))
def test_killed_at_any_step_of_splitting_a_unit_each_row_counts_once(tmp_path_factory, killed_at):
    layout = Layout(tmp_path_factory.mktemp("dataset"))
    ledger = Ledger(layout).open()
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
    after = Ledger(layout).open()
    assert units == after.commits.keys()
    assert units == {1, 2} or (units == {0} and not finished)
    assert sorted(row for record in after.commits.values() for row in record.rows) == ["a", "b"]
    assert shards(layout) == [f"train-{unit:06d}.parquet" for unit in sorted(units)]


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
    final = str(layout.feature_file("ssl", unit).relative_to(layout.root))
    temporary = layout.temporary / f"ssl-{content}.parquet"
    temporary.write_text(content)
    old = ledger.commits[unit]
    return old.model_copy(update={"plan": content, "files": {**old.files, final: content}}), {final: temporary}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(killed_at=st.integers(0, 12), replaces=st.booleans())
def test_killed_at_any_step_of_adding_a_feature_the_shard_stands_and_records_tell_the_truth(
    tmp_path_factory, killed_at, replaces
):
    layout = Layout(tmp_path_factory.mktemp("dataset"))
    ledger = Ledger(layout).open()
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
    after = Ledger(layout).open()
    shard, path = layout.shard_file(0), layout.feature_file("ssl", 0)
    assert shard.read_text() == "unit 0"
    assert sorted(after.rows) == ["a", "b"]
    named = after.commits[0].files.get(str(path.relative_to(layout.root)))
    assert named == (path.read_text() if path.exists() else None)
    assert after.commits[0].plan == (named or ("" if replaces else "p"))
    assert named == "new" or not finished
