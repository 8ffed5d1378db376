"""Training reads a dataset in a bucket as it reads the same one in a folder."""

import pickle
import uuid
from collections.abc import Iterator
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from pipeline.dataset.marks import set_marks
from schemas.dataset import Layout
from schemas.storage.objects import Objects
from tests.support.s3_server import BUCKET, s3_server
from tests.support.toy_dataset import write_dataset
from training.data import DataConfig, DatasetProblem, ShardStream, open_songs
from training.data.rows import RowReader

SONGS = 24


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[None]:
    with s3_server():
        forkserver._forkserver._stop()  # one of an earlier test would start readers that know another server
        yield
    forkserver._forkserver._stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_dataset(tmp_path_factory.mktemp("toy") / "songs", SONGS, shards=3, row_group=3))


@pytest.fixture(scope="module")
def bucket(folder: str) -> str:
    """The same dataset in a bucket."""
    layout = Layout.at(f"s3://{BUCKET}/{uuid.uuid4().hex}/songs")
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    with layout.store.writing():
        layout.store.publish({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
    return layout.url


def config(*datasets: str, **options: object) -> DataConfig:
    given = {"ssl": ("whisper_base",), "batch_size": 4, "max_frames_per_song": 200, **options}
    return DataConfig(datasets=datasets, **given)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_same(folder: str, bucket: str, workers: int) -> None:
    there = config(bucket, where="length(row_id) > 1")
    songs = open_songs(there)
    assert songs.longest_lyrics() == open_songs(config(folder)).longest_lyrics()
    from_bucket = ShardStream(songs, there, workers=workers)
    on_disk = ShardStream(open_songs(config(folder)), config(folder))
    assert from_bucket.songs.fingerprint() == on_disk.songs.fingerprint()
    for one, other in islice(zip(from_bucket, on_disk, strict=True), 8):
        assert one.track_ids == other.track_ids
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.text, other.text)


def test_a_footer_is_read_once_in_a_process(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    songs = open_songs(config(bucket))
    songs = pickle.loads(pickle.dumps(songs))  # as a worker process has it
    reader, read = RowReader(songs, ("whisper_base",)), []
    range_of = Objects.read_range
    monkeypatch.setattr(Objects, "read_range", lambda *args: read.append(args) or range_of(*args))
    first = dict(reader.read(range(SONGS)))
    files, groups = 3 * 4, 3 * 3 * 4  # of three units: a shard and three features, with three row groups each
    assert len(read) == files + groups
    read.clear()
    again = dict(reader.read(range(SONGS)))
    assert len(read) == groups
    assert str(again[0]["latents"]) == str(first[0]["latents"])


def test_marks_of_a_dataset_count(bucket: str, folder: str) -> None:
    layout = Layout.at(bucket)
    row_id = "row-0000000000000003"
    set_marks(layout, {row_id: "drop"})
    try:
        assert open_songs(config(bucket, folder)).left_out == {"marked drop": 1, "duplicate": SONGS - 1}
    finally:
        set_marks(layout, {row_id: None})


def test_what_is_missing_is_named_by_its_url(bucket: str) -> None:
    layout = Layout.at(f"s3://{BUCKET}/{uuid.uuid4().hex}")
    with pytest.raises(DatasetProblem, match=f"{layout.url} holds no shards"):
        open_songs(config(layout.url))
    whole = Layout.at(bucket).store
    names = [*whole.names("shards"), *whole.names("features/ssl"), *whole.names("_songmill/commits")]
    with layout.store.writing():
        layout.store.publish({name: whole.get(name) for name in names})
    with pytest.raises(DatasetProblem, match=f"{layout.url}/shards/train-000000.parquet has no latents"):
        open_songs(config(layout.url))
