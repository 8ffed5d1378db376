"""A dataset in a bucket is written, marked, recorded and read as one in a folder."""

import json
import pickle
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import schemas.storage.growing
from pipeline.curation.stored_file import StoredFile
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import read_marks, set_marks
from pipeline.dataset.rewrite_unit import drop_rows, split_unit
from pipeline.dataset.runs import RunInfo, events, follow, read_runs, recorded, state
from pipeline.dataset.saved_config import remember_config, remember_plan, remembered_config
from pipeline.dataset.stats import collect_stats, connect
from pipeline.dataset.stats_cache import current_stats
from pipeline.dataset.tombstones import bury, read_tombstones, unbury
from pipeline.dataset.verification import verify_dataset
from pipeline.dataset.writing import DatasetLocked, describe_dataset, exclusive_lock
from pipeline.edit.copy import copy_dataset
from pipeline.edit.whatif import what_if
from pipeline.errors import DataProblem
from pipeline.planning.config import build_config
from pipeline.planning.dag import build_dag
from pipeline.planning.plan import Plan, make_plan
from schemas.dataset import Layout
from schemas.storage.options import StorageOptions
from tests.support.command import asked
from tests.support.rows import row, write_rows
from tests.support.s3_server import BUCKET, keys, s3_server

QUICK = StorageOptions(lease_s=0.2)


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


def place() -> Layout:
    """Nothing yet."""
    return Layout.at(f"s3://{BUCKET}/{uuid.uuid4().hex}", QUICK)


def again(layout: Layout) -> Layout:
    """As another process opens it."""
    return Layout.at(layout.url, QUICK)


def objects(layout: Layout, folder: str) -> list[str]:
    return keys(f"{layout.url.removeprefix(f's3://{BUCKET}/')}/{folder}")


@pytest.fixture
def dataset(tmp_path: Path) -> Layout:
    """Four kept songs and one that was turned away, in one unit."""
    rows = [*(row(number) for number in range(4)), row(9, "filtered", "quality", "min_bandwidth_hz")]
    made = write_rows(tmp_path / "made", rows)
    layout = place()
    copy_dataset(made, layout)
    return layout


class TestUnits:
    def test_are_split_and_rewritten_and_nothing_else_is_left(self, dataset):
        with exclusive_lock(dataset):
            ledger = Ledger(dataset).open()
            split_unit(ledger, ledger.commits[0], {row(0)["row_id"], row(1)["row_id"]})
            drop_rows(ledger, ledger.commits[2], {row(2)["row_id"]})
        ledger = Ledger(again(dataset)).read()
        assert sorted(ledger.rows) == sorted(row(number)["row_id"] for number in (0, 1, 3, 9))
        assert sorted(ledger.commits) == [1, 3]
        assert (len(objects(dataset, "shards")), len(objects(dataset, "quarantine"))) == (2, 1)
        with connect(again(dataset)) as connection:
            found = connection.sql("select title from tracks order by title").fetchall()
        assert found == [("Song 0",), ("Song 1",), ("Song 3",)]
        assert collect_stats(again(dataset)).rows == {"kept": 3, "filtered": 1, "failed": 0, "total": 4}

    def test_are_verified(self, dataset):
        problems = verify_dataset(again(dataset))
        assert all("schema version None" in problem for problem in problems)  # rows written by hand lack it
        shard = objects(dataset, "shards")[0].partition("/")[2]
        content = dataset.store.get("shards/train-000000.parquet")
        dataset.store._objects.put(shard, content[:-1] + b"?")
        assert "shards/train-000000.parquet: content differs from what was committed" in verify_dataset(again(dataset))
        dataset.store._objects.delete([shard])
        assert "shards/train-000000.parquet: missing" in verify_dataset(again(dataset))

    def test_are_read_by_workers_that_know_the_address(self, dataset):
        store = pickle.loads(pickle.dumps(dataset.store))
        file = StoredFile(store, "shards/train-000000.parquet", {"rhythm": ""})
        assert len(file.identities) == 4

    def test_thresholds_are_tried_on_them(self, dataset):
        assert what_if(again(dataset), ["quality.min_bandwidth_hz=17000"]).kept_then.rows == 0


class TestTheRightToWrite:
    def test_is_held_by_one_process(self, dataset):
        with (
            exclusive_lock(dataset),
            pytest.raises(DatasetLocked, match=f"{dataset.url}: another songmill process"),
            exclusive_lock(again(dataset)),
        ):
            pass

    def test_ends_with_a_sentence_when_it_was_lost(self, dataset):
        def write_while_another_begins() -> None:
            with exclusive_lock(dataset):
                ledger = Ledger(dataset).open()
                dataset.store._objects.delete(["_songmill/lease.json"])  # as if it had run out and been taken
                with exclusive_lock(again(dataset)):
                    pass
                drop_rows(ledger, ledger.commits[0], {row(0)["row_id"]})

        with pytest.raises(DataProblem, match=f"{dataset.url}: another songmill process has begun to write"):
            write_while_another_begins()
        assert row(0)["row_id"] in Ledger(again(dataset)).read().rows


class TestWhatPeopleSay:
    def test_marks_set_at_the_same_time_are_all_there(self, dataset):
        assert read_marks(dataset) == {}
        threads = [
            threading.Thread(target=set_marks, args=[again(dataset), {f"row {i}": "keep"}, "good"]) for i in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        set_marks(dataset, {"row 0": None})
        assert {name: mark.note for name, mark in read_marks(again(dataset)).items()} == {
            f"row {i}": "good" for i in range(1, 6)
        }

    def test_tombstones_are_set_and_taken_away(self, dataset):
        with exclusive_lock(dataset):
            bury(dataset, {"a": "track a", "b": None}, "asked to")
            bury(dataset, {"a": "track a"}, "again")
        assert read_tombstones(again(dataset))["row_id"].to_pylist() == ["a", "b"]
        with exclusive_lock(dataset):
            assert unbury(dataset, ["track a"]) == 1
        assert read_tombstones(again(dataset))["row_id"].to_pylist() == ["b"]
        assert "1 rows may come back" in asked("forget", dataset.url, "--undo", "--track", "b")
        assert not read_tombstones(again(dataset)).num_rows


class TestWhatIsSaid:
    def test_statistics_are_kept_until_something_changes(self, dataset):
        assert current_stats(again(dataset)).rows["kept"] == 4
        kept = json.loads(dataset.store.get("_songmill/stats.json"))
        dataset.store.put("_songmill/stats.json", json.dumps(kept | {"shards": 77}).encode())
        assert current_stats(again(dataset)).shards == 77
        with exclusive_lock(dataset):
            ledger = Ledger(dataset).open()
            drop_rows(ledger, ledger.commits[0], {row(0)["row_id"]})
        assert current_stats(again(dataset)).shards == 1

    def test_the_card_lets_nobody_list_the_bucket(self, dataset):
        with exclusive_lock(dataset):
            describe_dataset(dataset, Plan.model_validate_json(dataset.store.get(dataset.plan)))
        card = again(dataset).store.get("README.md").decode()
        assert f"songmill inspect {dataset.url} --sql" in card
        assert "*.parquet" not in card
        assert f"# {dataset.url.rpartition('/')[2]}" in card


class TestSettings:
    def test_are_remembered_with_paths_as_they_were(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "songs").mkdir()
        layout = place()
        settings = ["storage.lease_s=0.2"]
        config = build_config(only=["decode"], input="songs", output=layout.url, overrides=settings)
        dag = build_dag(config, {}, {})
        with exclusive_lock(layout):
            remember_plan(layout, make_plan(config, dag))
            remember_config(layout, config, dag)
        found = remembered_config(again(layout))
        assert (found.output, found.input.path, found.storage) == (layout.url, str(tmp_path / "songs"), QUICK)
        assert Plan.model_validate_json(layout.store.get(layout.plan)).root is None
        (tmp_path / "songs").rmdir()
        with pytest.raises(DataProblem, match=f"{layout.url}: its songs should be at {tmp_path}/songs, but nothing"):
            remembered_config(again(layout))

    def test_of_a_dataset_that_was_copied_name_the_copy(self, dataset, tmp_path):
        config = build_config(only=["decode"], input=tmp_path, output=dataset.url, overrides=["storage.lease_s=0.2"])
        with exclusive_lock(dataset):
            remember_config(dataset, config, build_dag(config, {}, {}))
        copy = Layout.at(tmp_path / "copy")
        copy_dataset(dataset, copy)
        found = remembered_config(copy)
        assert (found.output, found.input.path, found.storage) == (copy.url, str(tmp_path), StorageOptions())


class TestRecordsOfRuns:
    def test_are_there_while_the_run_goes_and_whole_at_its_end(self, monkeypatch):
        monkeypatch.setattr(schemas.storage.growing, "_PUT_EVERY_S", 0.05)
        layout, seen = place(), []
        with recorded(layout, "curate", "plan1", {"stages": ["decode"]}) as record:
            (run,) = read_runs(again(layout))
            assert state(again(layout), run, run) == "running"
            follower = threading.Thread(
                target=lambda: seen.extend(event["event"] for event in follow(again(layout), run, every_s=0.05))
            )
            follower.start()
            record.event("node_lost", node="a")
        follower.join(10)
        assert not follower.is_alive()
        assert seen == ["run_started", "node_lost", "run_ended"]
        (run,) = read_runs(again(layout))
        assert (run.outcome, run.settings) == ("finished", {"stages": ["decode"]})
        assert [event["event"] for event in events(again(layout), run)] == seen

    def test_one_that_has_been_silent_for_long_was_killed(self):
        layout = place()
        with recorded(layout, "curate", "", {}):
            (run,) = read_runs(layout)
            long_ago = {"time": str(datetime.now(UTC) - timedelta(minutes=6)), "run": run.id, "event": "progress"}
            layout.store.put(f"_songmill/runs/{run.id}/events.jsonl", json.dumps(long_ago).encode() + b"\n")
            assert state(layout, run, run) == "killed"

    def test_old_ones_go(self):
        layout = place()
        info = {"command": "curate", "plan": "", "settings": {}, "versions": {}, "host": "", "pid": 1}
        for number in range(103):
            run = RunInfo(id=f"2020{number:04d}", started=datetime.now(UTC), outcome="finished", **info)
            layout.store.put(f"_songmill/runs/{run.id}/run.json", run.model_dump_json().encode())
        with recorded(layout, "curate", "", {}):
            pass
        found = read_runs(again(layout))
        assert len(found) == 101
        assert found[0].id == "20200003"
