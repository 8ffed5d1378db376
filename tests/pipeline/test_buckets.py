"""The guarantees of a dataset in a bucket, through the real command on real audio and an S3 server on loopback."""

import json
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from obstore.store import S3Store

from pipeline.dataset.marks import read_marks, set_marks
from schemas.commits import committed_files
from schemas.dataset import Layout
from tests.support.audio import write
from tests.support.command import asked, kill_when, songmill, start
from tests.support.s3_server import BUCKET, SECRET, keys, s3_server
from tests.support.tracks import load

pytestmark = pytest.mark.ray

Audio = Callable[[str, str], Path]
STAGES = "decode,quality,fingerprint"
SETTINGS = ("resources.rows_per_shard=1", "resources.workers=1", "audio.min_duration_s=2", "storage.lease_s=0.5")


@pytest.fixture(scope="module", autouse=True)
def s3():
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def songs(audio: Audio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of real songs, one of them twice, and a file that is none."""
    folder = tmp_path_factory.mktemp("songs")
    for name in ("happy_electronic_1", "calm_acoustic_1", "energetic_electronic_2"):
        for start_s in (2, 14):
            song = load(audio("demo-music", f"{name}.opus"), seconds=6, start_s=start_s)
            write(folder / f"{name} {start_s}.flac", song, metadata={"title": f"{name} {start_s}"})
    (folder / "copy.flac").write_bytes((folder / "calm_acoustic_1 2.flac").read_bytes())
    (folder / "broken.flac").write_bytes(b"fLaC is not enough")
    return folder


def place() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def curate(songs: object, out: object, *more: object) -> tuple[object, ...]:
    return ("curate", songs, "--out", out, "--stages", STAGES, *(f"--set={setting}" for setting in SETTINGS), *more)


def rows(dataset: object) -> list[dict[str, object]]:
    columns = "title, verdict.status as status, verdict.reason as reason, quality.loudness_lufs as loudness"
    sql = f"select {columns} from (from tracks union all by name from quarantine) order by all"
    return json.loads(asked("inspect", dataset, "--sql", sql, "--json"))


def objects(dataset: str, folder: str) -> list[str]:
    return keys(f"{dataset.removeprefix(f's3://{BUCKET}/')}/{folder}")


class TestADatasetInABucket:
    @pytest.fixture(scope="class")
    def dataset(self, songs: Path) -> str:
        out = place()
        said, _ = songmill(*curate(songs, out))
        assert "8 rows = 6 kept + 1 filtered + 1 failed (8 worked on, 0 unchanged)" in said
        return out

    def test_is_the_one_that_a_folder_would_hold(self, dataset: str, songs: Path, tmp_path: Path):
        songmill(*curate(songs, tmp_path / "dataset"))
        assert rows(dataset) == rows(tmp_path / "dataset")

    def test_is_verified_and_has_no_object_that_does_not_count(self, dataset: str):
        assert "all files and rows are as committed" in asked("verify", dataset)
        for folder, count in (("shards", 6), ("quarantine", 2)):
            assert len(objects(dataset, folder)) == count

    def test_nothing_is_done_twice(self, dataset: str, songs: Path):
        before = objects(dataset, "")
        said, _ = songmill(*curate(songs, dataset))
        assert "(0 worked on, 8 unchanged)" in said
        assert objects(dataset, "shards") == [key for key in before if "/shards/" in key]

    def test_grows_by_new_songs_and_its_own_address(self, dataset: str, songs: Path, audio: Audio):
        song = load(audio("demo-music", "nostalgic_acoustic_s411.opus"), seconds=6)
        new = write(songs / "new.flac", song, metadata={"title": "new"})
        try:
            said, _ = songmill("curate", dataset)
            assert "9 rows = 7 kept + 1 filtered + 1 failed (1 worked on, 8 unchanged)" in said
        finally:
            new.unlink()

    def test_people_mark_look_and_forget(self, dataset: str):
        shown = json.loads(asked("quarantine", dataset, "--json"))
        assert {row["reason"] for row in shown["rows"]} >= {"duplicate"} if isinstance(shown, dict) else shown
        assert json.loads(asked("whatif", dataset, "--set", "quality.min_loudness_lufs=-5", "--json"))

    def test_no_credential_is_in_it(self, dataset: str):
        for key in objects(dataset, ""):
            assert SECRET.encode() not in bytes(S3Store(BUCKET).get(key).bytes()), key

    def test_is_copied_to_a_folder_and_back(self, dataset: str, tmp_path: Path):
        folder, again = tmp_path / "copy", place()
        assert "0 were there" in asked("copy", dataset, folder, "-q")
        assert "all files and rows are as committed" in asked("verify", folder)
        assert rows(folder) == rows(dataset)
        assert "0 units copied" in asked("copy", dataset, folder, "-q")
        next((folder / "shards").iterdir()).unlink()
        row_id = json.loads(asked("inspect", dataset, "--sql", "select row_id from quarantine", "--json"))[0]["row_id"]
        set_marks(Layout.at(folder), {row_id: "drop"})
        assert "1 units copied" in asked("copy", dataset, folder, "-q")
        assert "all files and rows are as committed" in asked("verify", folder)
        assert [*read_marks(Layout.at(folder))] == [row_id]
        asked("copy", dataset, folder, "-q", "--mirror")
        assert not read_marks(Layout.at(folder))
        asked("copy", folder, again, "-q")
        assert "all files and rows are as committed" in asked("verify", again)
        assert rows(again) == rows(dataset)

    def test_a_mirror_drops_units_that_the_source_has_no_more(self, dataset: str, songs: Path, tmp_path: Path):
        other = tmp_path / "other"
        songmill(*curate(songs, other, "--quiet"))
        assert "units that the source does not have" in asked("copy", dataset, other, "-q", code=1)
        asked("copy", dataset, other, "-q", "--mirror")
        assert "all files and rows are as committed" in asked("verify", other)
        assert rows(other) == rows(dataset)
        (other / "_songmill" / "moves.json").write_text("{}")
        assert "while it renamed rows" in asked("copy", other, place(), code=1)

    def test_a_synced_copy_is_read_by_its_card(self, dataset: str, tmp_path: Path):
        """As `aws s3 sync` makes one: every object under its key, strays too."""
        prefix = dataset.removeprefix(f"s3://{BUCKET}/")
        bucket = S3Store(BUCKET, prefix=prefix)
        bucket.put("shards/train-000000-e1-00000000.parquet", b"a stray of a killed run")
        try:
            assert "shards/train-000000-e1-00000000.parquet: not written to its end" in asked("verify", dataset, code=1)
            for key in keys(prefix):
                path = tmp_path / "copy" / key.removeprefix(f"{prefix}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(S3Store(BUCKET).get(key).bytes())
        finally:
            bucket.delete("shards/train-000000-e1-00000000.parquet")
        songs = load_dataset(str(tmp_path / "copy"), cache_dir=str(tmp_path / "cache"))["train"]
        assert sorted(songs["title"]) == [row["title"] for row in rows(dataset) if row["status"] == "kept"]

    def test_its_snippets_read_only_what_counts(self, dataset: str):
        layout = Layout.at(dataset)
        shards = [name for name in committed_files(layout) if name.startswith("shards/")]
        with duckdb.connect() as connection:
            layout.store.let_read(connection)
            rows = connection.read_parquet([layout.store.address(name) for name in shards])
            ((count,),) = rows.count("*").fetchall()
        assert count == sum(pq.ParquetFile(n, filesystem=layout.store.filesystem).metadata.num_rows for n in shards)


def test_a_file_that_somebody_deleted_is_a_sentence(songs: Path, tmp_path: Path):
    out = place()
    songmill(*curate(songs, out, "--quiet"))
    gone = objects(out, "shards")[0]
    S3Store(BUCKET).delete(gone)
    name = f"s3://{BUCKET}/{gone}"
    assert f"error: {name} is gone" in asked("inspect", out, "--sql", "select title from tracks", code=1)
    assert "Traceback" not in asked("inspect", out, "--sql", "select title from tracks", code=1)
    assert f"error: {name} is gone" in asked("inspect", out, "--html", tmp_path / "report.html", code=1)
    assert "missing" in asked("verify", out, code=1)
    assert "is gone" in asked("copy", out, tmp_path / "copy", "-q", code=1)


def test_a_killed_run_goes_on_and_leaves_nothing_behind(songs: Path):
    out = place()
    kill_when(lambda: len(objects(out, "shards")) >= 2, *curate(songs, out, "--quiet"))
    committed = len(objects(out, "_songmill/log/entries"))
    said, _ = songmill(*curate(songs, out, "--quiet"))
    assert "8 rows = 6 kept + 1 filtered + 1 failed" in said
    assert "0 unchanged" not in said
    assert len(objects(out, "_songmill/log/entries")) > committed
    assert "all files and rows are as committed" in asked("verify", out)
    assert len(objects(out, "shards")) == 6


def test_a_run_that_sleeps_through_another_one_stops_with_a_sentence(songs: Path):
    """A machine that was suspended, or whose network was away, wakes up after somebody else has taken over."""
    out = place()
    first = start(*curate(songs, out, "--quiet"))
    while len(objects(out, "shards")) < 2:
        assert first.poll() is None, first.communicate()
    first.send_signal(signal.SIGSTOP)
    said, _ = songmill(*curate(songs, out, "--quiet"))
    assert "8 rows = 6 kept + 1 filtered + 1 failed" in said
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "another songmill process has begun to write this dataset" in err
    assert "Traceback" not in err
    assert "all files and rows are as committed" in asked("verify", out)
    assert len(objects(out, "shards")) == 6


def test_songs_are_read_from_a_bucket_with_their_sidecars(songs: Path):
    source, out = f"s3://{BUCKET}/{uuid.uuid4().hex}", place()
    store = S3Store(BUCKET, prefix=source.removeprefix(f"s3://{BUCKET}/"))
    for path in songs.iterdir():
        store.put(f"artist/album/{path.name}", path.read_bytes())
    store.put("artist/album/calm_acoustic_1 2.txt", b"la la la")
    said, _ = songmill(*curate(source, out, "--quiet"))
    assert "8 rows = 6 kept + 1 filtered + 1 failed" in said
    rows = "from tracks union all by name from quarantine"
    sql = f"select uri from ({rows}) where given_lyrics = 'la la la'"
    lyrics = json.loads(asked("inspect", out, "--sql", sql, "--json"))
    assert lyrics[0]["uri"].startswith(f"{source}/artist/album/")
    said, _ = songmill(*curate(source, out, "--quiet"))
    assert "(0 worked on, 8 unchanged)" in said


def test_a_bucket_that_is_not_there_is_a_sentence():
    err = asked("inspect", "s3://nobodys-bucket/dataset", code=1)
    assert "s3://nobodys-bucket/dataset" in err
    assert "Traceback" not in err
    assert "s3://, gs:// or az://" in asked("inspect", "ftp://host/dataset", code=2)
