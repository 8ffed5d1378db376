"""Thresholds applied for good, against `curate --update` and against what `whatif` had said."""

import json
from contextlib import suppress
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import schemas.files
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import set_marks
from pipeline.dataset.stats import connect
from pipeline.dataset.verification import verify_dataset
from pipeline.edit.apply_thresholds import apply_thresholds
from pipeline.edit.whatif import what_if
from pipeline.planning.plan import Plan
from schemas.dataset import FOOTER_PLAN, FOOTER_SHARD_DIGEST, Layout
from tests.pipeline.dataset.test_ledger import Killed, _kill_before_change
from tests.support.command import asked
from tests.support.played_dataset import PlayedDataset, scanned

SIZE = "resources.rows_per_shard=2"


def songs(*loudness: float) -> list[dict[str, Any]]:
    return [scanned(f"{i:02d}", f"track {i}", loudness=value) for i, value in enumerate(loudness)]


def statuses(dataset: PlayedDataset) -> dict[str, tuple[str, str | None]]:
    return {name: (row["verdict"]["status"], row["verdict"]["reason"]) for name, row in sorted(dataset.rows.items())}


def reopened(dataset: PlayedDataset) -> PlayedDataset:
    with dataset.layout.store.writing():
        dataset.ledger = Ledger(dataset.layout).open()
    return dataset


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(-60, -5), min_size=1, max_size=7),
    st.integers(-60, -5),
    st.one_of(st.none(), st.integers(-60, -5)),
)
def test_it_does_what_curate_update_does(tmp_path_factory, loudness, least, most):
    bounds = [f"quality.min_loudness_lufs={least}", f"quality.max_loudness_lufs={'null' if most is None else most}"]
    rows = songs(*loudness)
    updated = PlayedDataset(tmp_path_factory.mktemp("a") / "dataset").run(*rows, overrides=(SIZE,))
    applied = PlayedDataset(tmp_path_factory.mktemp("b") / "dataset").run(*rows, overrides=(SIZE,))
    updated.run(*rows, overrides=(SIZE, *bounds))
    foreseen = what_if(applied.layout, bounds)
    apply_thresholds(applied.layout, bounds)
    reopened(applied)
    assert not verify_dataset(applied.layout)
    after = statuses(applied)
    assert sum(status == "kept" for status, _ in after.values()) == foreseen.kept_then.rows
    assert sum(status == "pending" for status, _ in after.values()) == foreseen.pending.rows
    assert (
        Plan.model_validate_json((applied.root / "_songmill/plan.json").read_bytes()).id
        == updated.ledger.commits.popitem()[1].plan
    )
    measured = list(applied.measured)
    applied.run(*rows, overrides=(SIZE, *bounds))  # completes what is pending, and only that
    assert statuses(applied) == statuses(reopened(updated))
    assert len(applied.measured) - len(measured) == foreseen.pending.rows


def test_a_rejected_row_keeps_its_columns_and_says_why(played_dataset):
    played_dataset.run(*songs(-10, -20), overrides=(SIZE,))
    apply_thresholds(played_dataset.layout, ["quality.min_loudness_lufs=-15"])
    rows = reopened(played_dataset).rows
    assert rows["01"]["verdict"] == {
        "status": "filtered",
        "stage": "quality",
        "reason": "min_loudness_lufs",
        "message": "quality.loudness_lufs -20 is below min_loudness_lufs -15",
        "attempts": 1,
    }
    assert rows["01"]["key"]["tonic"] == "C"
    states = Ledger(played_dataset.layout).read().rows
    assert states["01"].first_seen is not None
    assert states["00"].first_seen is None


def test_rows_with_all_their_columns_come_back_at_once(played_dataset):
    played_dataset.run(*songs(-10, -20), overrides=(SIZE,))
    apply_thresholds(played_dataset.layout, ["quality.min_loudness_lufs=-15"])
    apply_thresholds(played_dataset.layout, ["quality.min_loudness_lufs=-30"])
    assert statuses(reopened(played_dataset)) == {"00": ("kept", None), "01": ("kept", None)}
    assert played_dataset.measured == ["00", "01"]


def test_units_without_a_change_keep_their_files(played_dataset):
    played_dataset.run(*songs(-10, -11, -20, -12), overrides=(SIZE,))
    before = {path: path.read_bytes() for path in (played_dataset.root / "shards").iterdir()}
    apply_thresholds(played_dataset.layout, ["quality.min_loudness_lufs=-15"])
    after = {path: path.read_bytes() for path in (played_dataset.root / "shards").iterdir()}
    assert len(before.keys() & after.keys()) == 1
    assert all(after[path] == before[path] for path in before.keys() & after.keys())


def test_features_follow_their_rows(played_dataset):
    played_dataset.run(*songs(-10, -20, -11, -21), overrides=("resources.rows_per_shard=4",))
    (commit,) = played_dataset.ledger.commits.values()
    layout, root = played_dataset.layout, played_dataset.root
    shard = pq.read_table(root / f"shards/train-{commit.unit:06d}.parquet")
    name = f"features/preview/train-{commit.unit:06d}.parquet"
    heard = shard.select(["row_id"]).append_column("preview", [[{"heard": name} for name in "abcd"]])
    digest = commit.files[f"shards/train-{commit.unit:06d}.parquet"]
    temporary = layout.store.scratch / "x.parquet"
    pq.write_table(heard.replace_schema_metadata({FOOTER_SHARD_DIGEST: digest, **shard.schema.metadata}), temporary)
    files = {**commit.files, name: schemas.files.file_digest(temporary)}
    played_dataset.ledger.amend(commit.model_copy(update={"files": files}), {name: temporary})
    assert not verify_dataset(layout)
    apply_thresholds(layout, ["quality.min_loudness_lufs=-15"])
    assert not verify_dataset(layout)
    (path,) = (root / "features/preview").iterdir()
    found = pq.read_table(path).to_pylist()
    assert [(row["row_id"], row["preview"]["heard"]) for row in found] == [("00", "a"), ("02", "c")]
    plan = Plan.model_validate_json(layout.store.get(layout.plan)).id
    assert (pq.read_metadata(root / "shards/train-000001.parquet").metadata or {})[FOOTER_PLAN] == plan.encode()


def test_what_people_and_duplicates_decided_stands(played_dataset):
    rows = [*songs(-10, -20), scanned("02", "track 0", loudness=-10), scanned("03", "x", works=False)]
    played_dataset.run(*rows, overrides=(SIZE,))
    set_marks(played_dataset.layout, {"01": "keep"})
    apply_thresholds(played_dataset.layout, ["quality.min_loudness_lufs=-15"])
    assert statuses(reopened(played_dataset)) == {
        "00": ("kept", None),
        "01": ("kept", None),
        "02": ("filtered", "exact_duplicate"),
        "03": ("failed", "TruncatedAudio"),
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(killed_at=st.integers(0, 60))
def test_killed_at_any_step_it_is_finished_by_the_same_command(tmp_path_factory, killed_at):
    dataset = PlayedDataset(tmp_path_factory.mktemp("killed") / "dataset")
    dataset.run(*songs(-10, -20, -11, -21, -50), overrides=(SIZE,))
    bounds = ["quality.min_loudness_lufs=-20.5"]
    with pytest.MonkeyPatch.context() as patch:
        _kill_before_change(patch, killed_at)
        with suppress(Killed):
            apply_thresholds(dataset.layout, bounds)
    apply_thresholds(dataset.layout, bounds)
    assert not verify_dataset(dataset.layout)
    assert [status for status, _ in statuses(reopened(dataset)).values()] == [
        "kept",
        "kept",
        "kept",
        "filtered",
        "filtered",
    ]


def test_the_command_says_what_it_did_and_an_interrupted_run_is_refused(played_dataset, monkeypatch):
    played_dataset.run(*songs(-10, -20, -50), overrides=(SIZE,))
    root = played_dataset.root
    told = json.loads(asked("whatif", root, "--set=quality.min_loudness_lufs=-60", "--apply", "--json"))
    assert told["pending"]["rows"] == 1
    assert connect(Layout.at(root)).sql("select verdict.status from quarantine").fetchall() == [("pending",)]
    ledger = Ledger(played_dataset.layout).open()
    commit = next(iter(ledger.commits.values()))
    ledger.amend(commit.model_copy(update={"plan": "another"}), {})
    monkeypatch.setattr("pipeline.curation.missing.file_is_there", lambda _: True)  # else the unit waits for its files
    error = asked("whatif", root, "--set=quality.min_loudness_lufs=-45", "--apply", code=1)
    assert "a run was interrupted" in error
