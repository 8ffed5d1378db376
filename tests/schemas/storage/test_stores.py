"""What a dataset may rely on, of a folder and of a bucket alike."""

import os
import pickle
import threading
import uuid

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from schemas.storage.input_files import file_system
from schemas.storage.location import open_store
from schemas.storage.options import StorageOptions
from schemas.storage.store import Overtaken, Store, StoreBusy
from tests.support.azure_server import CONTAINER
from tests.support.s3_server import BUCKET, keys

QUICK = StorageOptions(lease_s=0.2)


@pytest.fixture(params=["folder", "s3", "azure"])
def place(request, tmp_path):
    """Where a dataset is to be."""
    if request.param == "folder":
        return str(tmp_path / "dataset")
    request.getfixturevalue(request.param)
    url = f"s3://{BUCKET}" if request.param == "s3" else f"az://{CONTAINER}"
    return f"{url}/{uuid.uuid4().hex}"


@pytest.fixture
def bucket(s3):
    """A place in a bucket."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def opened(place: str) -> Store:
    return open_store(place, QUICK)


def draft(store: Store, rows: int) -> "os.PathLike[str]":
    path = store.scratch / f"{uuid.uuid4().hex}.parquet"
    pq.write_table(pa.table({"n": range(rows), "text": ["x" * 100] * rows}), path)
    return path


class TestAnyPlace:
    def test_what_is_published_is_seen_by_others_and_goes_again(self, place):
        store = opened(place)
        with store.writing():
            store.publish({"shards/a.parquet": draft(store, 3), "_songmill/commits/1.json": b'{"unit": 1}'})
            store.publish({"shards/b.parquet": draft(store, 4)}, removed=["shards/a.parquet", "shards/none.parquet"])
        other = opened(place)
        assert other.names("shards") == ["shards/b.parquet"]
        assert other.names("_songmill/commits") == ["_songmill/commits/1.json"]
        assert other.get("_songmill/commits/1.json") == b'{"unit": 1}'
        assert (other.exists("shards/b.parquet"), other.exists("shards/a.parquet")) == (True, False)
        assert pq.read_table("shards/b.parquet", filesystem=other.filesystem)["n"].to_pylist() == [0, 1, 2, 3]
        assert other.size("shards/b.parquet") == len(other.get("shards/b.parquet"))
        with pytest.raises(FileNotFoundError):
            other.get("shards/a.parquet")
        assert other.names("nowhere") == []

    def test_a_reader_goes_on_from_what_it_knows(self, place):
        store, reader = opened(place), opened(place)
        for number in range(3):
            with store.writing():
                store.publish({f"shards/{number}.parquet": draft(store, 1)})
            reader.refresh()
            assert len(reader.names("shards")) == number + 1

    def test_one_process_writes_at_a_time(self, place):
        with (
            opened(place).writing(),
            pytest.raises(StoreBusy, match="another songmill process"),
            opened(place).writing(),
        ):
            pass
        with opened(place).writing():
            pass

    def test_updates_of_several_processes_at_once_are_not_lost(self, place):
        with opened(place).writing():
            pass

        def add(number: int) -> None:
            opened(place).update("_songmill/marks", lambda there: (there or b"") + bytes([number]))

        threads = [threading.Thread(target=add, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(opened(place).get("_songmill/marks")) == [*range(12)]

    def test_files_that_need_no_lock_are_put_listed_and_discarded(self, place):
        store = opened(place)
        for name in ("_songmill/runs/1/run.json", "_songmill/runs/1/events.jsonl", "_songmill/runs/2/run.json"):
            store.put(name, name.encode())
        store.discard(["_songmill/runs/1/run.json", "_songmill/runs/1/events.jsonl", "_songmill/runs/none"])
        assert opened(place).put_names("_songmill/runs") == ["_songmill/runs/2/run.json"]
        assert opened(place).get("_songmill/runs/2/run.json") == b"_songmill/runs/2/run.json"

    def test_a_store_goes_to_another_process(self, place):
        store = opened(place)
        with store.writing():
            store.publish({"shards/a.parquet": draft(store, 3)})
        there = pickle.loads(pickle.dumps(store))
        assert there == store
        assert there.names("shards") == ["shards/a.parquet"]

    def test_arrow_reads_many_files_as_one_table(self, place):
        store = opened(place)
        with store.writing():
            store.publish({f"shards/{number}.parquet": draft(store, 5) for number in range(3)})
        table = ds.dataset(store.names("shards"), filesystem=store.filesystem, format="parquet")
        assert table.count_rows() == 15
        assert table.to_table(columns=["n"])["n"].to_pylist() == [0, 1, 2, 3, 4] * 3

    def test_duckdb_reads_files_by_their_addresses(self, place):
        store = opened(place)
        with store.writing():
            store.publish({f"shards/{number}.parquet": draft(store, 2) for number in range(2)})
        addresses = [store.address(name) for name in store.names("shards")]
        with duckdb.connect() as connection:
            store.let_read(connection)
            store.let_read(connection)
            rows = connection.read_parquet(addresses, filename=True, file_row_number=True)
            assert rows.project("filename, file_row_number, n").fetchall() == [
                (address, row, row) for address in addresses for row in range(2)
            ]


class TestABucket:
    def test_a_pickled_store_holds_no_secret(self, bucket, monkeypatch):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
        assert b"hush" not in pickle.dumps(opened(bucket))

    def test_a_writer_that_slept_through_its_lease_stops_at_its_next_file(self, bucket):
        sleeper, other = opened(bucket), opened(bucket)
        with sleeper.writing():
            sleeper._objects.delete(["_songmill/lease.json"])  # as if it had run out and been taken
            with other.writing():
                other.publish({"shards/b.parquet": draft(other, 1)})
            with pytest.raises(Overtaken):
                sleeper.publish({"shards/a.parquet": draft(sleeper, 1)})
        assert opened(bucket).names("shards") == ["shards/b.parquet"]

    def test_the_next_writer_sweeps_what_a_killed_one_had_uploaded(self, bucket):
        killed = opened(bucket)
        with killed.writing():
            killed._uploaded("shards/a.parquet", draft(killed, 1))
            assert [name.startswith("shards/a-e1-") for name in opened(bucket).strays()] == [True]
        with opened(bucket).writing():
            pass
        assert opened(bucket).strays() == []
        assert keys(bucket.removeprefix(f"s3://{BUCKET}/") + "/shards") == []

    def test_drafts_are_private_and_those_of_a_killed_process_go(self, bucket):
        store = opened(bucket)
        left = store.scratch.with_name("left-by-a-killed-process")
        with store.writing():
            assert store.scratch.stat().st_mode & 0o777 == 0o700
            left.mkdir()
            with opened(bucket + "-other").writing():
                assert not left.exists()
                assert store.scratch.exists()
        assert not store.scratch.exists()

    def test_files_that_were_replaced_leave_no_object(self, bucket):
        store = opened(bucket)
        with store.writing():
            for rows in range(1, 4):
                store.publish({"shards/a.parquet": draft(store, rows)})
        assert len(keys(bucket.removeprefix(f"s3://{BUCKET}/") + "/shards")) == 1
        assert pq.read_table("shards/a.parquet", filesystem=opened(bucket).filesystem).num_rows == 3


@pytest.mark.parametrize("place", ["ftp://host/dataset", "s3:/music/dataset", "s3://"])
def test_another_url_is_refused(place):
    with pytest.raises(ValueError, match=r"s3://, gs:// or az://"):
        open_store(place)


@pytest.mark.parametrize("place", ["s3://KEY:hush@music/dataset", "s3://music/dataset?X-Amz-Signature=hush"])
def test_a_url_with_credentials_is_refused_without_repeating_them(place):
    with pytest.raises(ValueError, match="environment") as refused:
        open_store(place)
    assert "hush" not in str(refused.value)
    with pytest.raises(ValueError, match="environment"):
        StorageOptions(endpoint="https://user:hush@minio:9000")
    with pytest.raises(ValueError, match="environment"):
        file_system("s3://KEY:hush@music/songs")
