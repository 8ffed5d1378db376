"""`songmill explore` on a dataset in a bucket: the index, conditions on whole rows, previews, marks and changes."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from pipeline.dataset.marks import read_marks
from pipeline.explore.conditions import Conditions
from pipeline.explore.index_cache import IndexCache
from pipeline.explore.live import Live
from schemas.dataset import Layout
from schemas.storage.parquet import read_parquet
from tests.pipeline.explore.test_explore import PREVIEW, SONGS, commit, get, served, song, token, total, write
from tests.support.s3_server import BUCKET, s3_server


@pytest.fixture(scope="module", autouse=True)
def s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    songs = [song(number, tmp_path / "songs") for number in range(SONGS)]
    return write(tmp_path, songs, f"s3://{BUCKET}/{uuid.uuid4().hex}/shop")


@pytest.fixture
def live(layout: Layout, tmp_path: Path) -> Live:
    return Live(IndexCache(Layout.at(layout.url), tmp_path / "index"))


@pytest.fixture
def client(live: Live) -> Iterator[TestClient]:
    with Conditions() as conditions:
        yield served(live, conditions)


def test_rows_are_listed_filtered_shown_and_marked(client: TestClient, layout: Layout):
    page = get(client)
    assert total(page) == SONGS
    assert "shop" in page
    assert total(get(client, where="len(rhythm.beats_s) < 10")) == 10  # of a column that the index does not have
    assert "Song 40" in get(client, f"/row/{40:032x}")
    form = {"row_id": f"{5:032x}", "mark": "drop", "token": token(page)}
    sent = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/mark", content=urlencode(form), headers=sent).status_code == 303
    assert read_marks(Layout.at(layout.url))[f"{5:032x}"].mark == "drop"
    assert total(get(client, mark="drop")) == 1


def test_a_condition_reads_nothing_but_the_rows_of_this_dataset(client: TestClient, layout: Layout, tmp_path: Path):
    (tmp_path / "secret.csv").write_text("secret\n1\n")
    for path in (tmp_path / "secret.csv", layout.store.address("_songmill/plan.json"), layout.url):
        where = f"exists (from read_csv('{path}'))"
        assert "Permission Error" in get(client, where=where, code=400)


def test_previews_are_heard(client: TestClient, layout: Layout, audio: Callable[[str, str], Path]):
    opus = audio("demo-music", "happy_electronic_1.opus").read_bytes()
    with layout.store.writing():
        rows = read_parquet(layout.store, layout.shard_file(0), ["row_id"])["row_id"].to_pylist()
        made = [{"row_id": row_id, "preview": None} for row_id in rows]
        made[1]["preview"] = {"codec": "opus", "data": opus, "start_s": 12.5, "duration_s": 31.5}
        pq.write_table(pa.Table.from_pylist(made, PREVIEW), layout.store.scratch / "made.parquet")
        layout.store.publish({layout.feature_file("preview", 0): layout.store.scratch / "made.parquet"})
    row_id = rows[1]
    assert "Song 1" in get(client, f"/row/{row_id}")
    answer = client.get(f"/audio/{row_id}", headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, opus[10:20])


def test_commits_are_seen_and_files_that_are_gone_are_told(
    client: TestClient, layout: Layout, live: Live, tmp_path: Path
):
    assert total(get(client)) == SONGS
    commit(layout, 2, [song(number, tmp_path / "songs") for number in range(70)], supersedes=0)
    live._not_before = time.monotonic() + 600
    assert "A run has changed the dataset" in get(client)
    assert "changed while it was read" in get(client, where="len(rhythm.beats_s) < 10", code=503)
    assert total(get(client, where="len(rhythm.beats_s) < 10")) == 10
    commit(layout, 3, [song(number, tmp_path / "songs") for number in range(10)], supersedes=2)
    live._not_before = 0
    assert total(get(client)) == SONGS - 60


def test_its_index_is_kept_when_others_are_cleared(live: Live, tmp_path: Path):
    index = live.index.file
    write(tmp_path / "other", [song(number, tmp_path) for number in range(SONGS)])
    IndexCache(Layout.at(tmp_path / "other/dataset"), tmp_path / "index")
    assert index.exists()
    assert live.reopen().file == index
