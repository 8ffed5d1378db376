"""The index of `songmill explore`: always that of the dataset's present state, and read from as few files as can be."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset.ledger import Ledger
from pipeline.errors import DataProblem
from pipeline.explore.index import Index
from pipeline.explore.index_cache import IndexCache
from schemas.commits import Commit, RowState
from schemas.dataset import Layout
from schemas.files import file_digest
from tests.pipeline.explore.test_explore import SONGS, commit, song, write
from tests.support.played_dataset import PlayedDataset, scanned

SONG = st.tuples(st.sampled_from("abc"), st.sampled_from([-14.0, -30.0, -50.0]), st.booleans())
RUN = st.tuples(st.dictionaries(st.sampled_from("pqrstuvw"), SONG, min_size=1), st.sampled_from([-60, -40, -20]))


class Told:
    """A progress that remembers how many files were to be read, each time."""

    def __init__(self) -> None:
        self.files: list[int] = []

    def __call__(self, done: int, total: int) -> None:
        if not done:
            self.files.append(total)


def contents(index: Index) -> dict[str, Any]:
    """All that an index says."""
    cursor = index.cursor()
    return {
        "fields": index.fields,
        "gates": index.gates,
        "columns": cursor.execute("describe rows").fetchall(),
        "rows": cursor.execute("from rows order by _n").fetchall(),
        "files": cursor.execute("from files order by number").fetchall(),
        "whole": sorted(map(str, cursor.execute("from everything").fetchall())),
    }


def from_nothing(layout: Layout) -> dict[str, Any]:
    with TemporaryDirectory() as cache:
        return contents(IndexCache(layout, Path(cache)).index(Told()))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return write(tmp_path, [song(number, tmp_path / "songs") for number in range(SONGS)])


@pytest.fixture
def cache(layout: Layout, tmp_path: Path) -> IndexCache:
    return IndexCache(layout, tmp_path / "cache")


def indices(cache: IndexCache) -> list[Path]:
    return [*cache.folder.glob("*.duckdb")]


class TestState:
    @settings(max_examples=8)
    @given(st.lists(RUN, min_size=1, max_size=4))
    def test_an_index_brought_up_to_date_is_one_made_from_nothing(self, runs: list):
        with TemporaryDirectory() as folder:
            dataset = PlayedDataset(Path(folder) / "dataset")
            (dataset.root / "_songmill/plan.json").write_text("{}")
            cache = IndexCache(dataset.layout, Path(folder) / "cache")
            for songs, threshold in runs:
                rows = [
                    scanned(name, track, loudness=loudness, works=works)
                    for name, (track, loudness, works) in songs.items()
                ]
                options = ("resources.rows_per_shard=2", f"quality.min_loudness_lufs={threshold}")
                dataset.run(*rows, overrides=options)
                index = cache.index(Told())
                assert contents(index) == from_nothing(dataset.layout)
                assert index.size == len(dataset.ledger.rows)
                assert len(indices(cache)) == 1

    def test_only_files_that_came_are_read(self, layout: Layout, cache: IndexCache, tmp_path: Path):
        told = Told()
        cache.index(told)
        cache.index(told)
        assert told.files == [4]
        commit(layout, 2, [song(number, tmp_path) for number in range(500, 510)])
        commit(layout, 3, [song(number, tmp_path) for number in range(5)], supersedes=0)
        assert contents(cache.index(told)) == from_nothing(layout)
        assert told.files == [4, 4]
        assert contents(IndexCache(layout, tmp_path / "cache").index(told)) == from_nothing(layout)
        assert told.files == [4, 4]

    def test_files_with_other_columns_come_and_go(self, layout: Layout, cache: IndexCache):
        made = contents(cache.index(Told()))
        for unit, columns in ((2, ["row_id", "uri", "verdict"]), (3, ["row_id", "uri", "verdict", "energy"])):
            rows = {
                "row_id": [f"{unit:032x}"],
                "uri": ["x"],
                "verdict": [{"status": "kept", "stage": None, "reason": None}],
                "energy": [{"level": 0.5, "curve": [0.1, 0.2]}],
            }
            add(layout, unit, pa.table({name: rows[name] for name in columns}))
            assert contents(cache.index(Told())) == from_nothing(layout)
        assert cache.index(Told()).fields["energy.level"] == "number"
        for unit in (2, 3):
            with layout.store.writing():
                gone = Commit(unit=9, plan="", files={}, rows={}, timings={}, supersedes=unit)
                Ledger(layout).open().rewrite(gone, {})
            assert contents(cache.index(Told())) == from_nothing(layout)
        assert contents(cache.index(Told())) == made

    def test_another_dataset_in_the_same_place_is_not_taken_for_it(
        self, layout: Layout, cache: IndexCache, tmp_path: Path
    ):
        assert cache.index(Told()).size == SONGS
        for folder in ("_songmill/commits", "shards", "quarantine"):
            shutil.rmtree(Path(layout.url) / folder)
        commit(layout, 0, [song(number, tmp_path) for number in range(300, 310)])
        assert cache.index(Told()).size == 10


def add(layout: Layout, unit: int, table: pa.Table) -> None:
    """A unit of kept rows with any columns."""
    rows = {row_id: RowState(status="kept", track_id=None, basis="") for row_id in table["row_id"].to_pylist()}
    with layout.store.writing():
        written = layout.store.scratch / "shard.parquet"
        pq.write_table(table, written)
        name = f"shards/train-{unit:06d}.parquet"
        record = Commit(unit=unit, plan="", files={name: file_digest(written)}, rows=rows, timings={})
        Ledger(layout).open().add(record, {name: written})


class TestShelf:
    def test_it_lies_outside_of_the_dataset_for_its_owner_alone(self, layout: Layout, cache: IndexCache):
        before = sorted(Path(layout.url).rglob("*"))
        cache.index(Told())
        assert sorted(Path(layout.url).rglob("*")) == before
        assert cache.folder.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:20_000], lambda c: c.replace(b"Song 1", b"Song 2")])
    def test_a_damaged_index_is_made_anew(self, layout: Layout, cache: IndexCache, damage: Callable[[bytes], bytes]):
        cache.index(Told()).close()
        [file] = indices(cache)
        file.write_bytes(damage(file.read_bytes()))
        told = Told()
        assert contents(cache.index(told)) == from_nothing(layout)
        assert told.files[-1] == 4
        assert len(indices(cache)) == 1

    def test_a_damaged_index_is_not_the_base_of_another(self, layout: Layout, cache: IndexCache, tmp_path: Path):
        cache.index(Told()).close()
        [file] = indices(cache)
        file.write_bytes(file.read_bytes()[:20_000])
        commit(layout, 2, [song(500, tmp_path)])
        assert contents(cache.index(Told())) == from_nothing(layout)

    def test_an_older_index_answers_those_who_have_it_open(self, layout: Layout, cache: IndexCache, tmp_path: Path):
        older = cache.index(Told())
        commit(layout, 2, [song(500, tmp_path)])
        newer = IndexCache(layout, tmp_path / "cache").index(Told())
        assert len(indices(cache)) == 1
        assert (len(contents(older)["rows"]), len(contents(newer)["rows"])) == (SONGS, SONGS + 1)

    def test_of_several_that_start_at_once_one_makes_the_index(self, layout: Layout, tmp_path: Path):
        told = Told()
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: IndexCache(layout, tmp_path / "cache").index(told).size, range(4)))
        assert (found, told.files) == ([SONGS] * 4, [4])

    def test_what_a_killed_process_left_is_removed(self, layout: Layout, cache: IndexCache):
        for name in ("making", "making.wal"):
            (cache.folder / name).write_bytes(b"half an index")
        assert contents(cache.index(Told())) == from_nothing(layout)
        assert not [*cache.folder.glob("making*")]

    def test_indices_of_datasets_that_are_gone_go(self, layout: Layout, cache: IndexCache, tmp_path: Path):
        cache.index(Told()).close()
        moved = Layout.at(Path(layout.url).rename(tmp_path / "elsewhere"))
        other = IndexCache(moved, tmp_path / "cache")
        assert not cache.folder.exists()
        assert other.index(Told()).size == SONGS

    def test_a_cache_that_cannot_be_written_to_is_told(self, layout: Layout, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(DataProblem, match="XDG_CACHE_HOME"):
            IndexCache(layout, tmp_path / "file" / "cache")
