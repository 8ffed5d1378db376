"""Rows that are forgotten are gone from every file, stay gone, and are known by their hashes alone."""

import json
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import read_marks, set_marks
from pipeline.dataset.tombstones import read_tombstones
from pipeline.dataset.verification import verify_dataset
from pipeline.edit.forget import find_forgettable, forget
from pipeline.errors import DataProblem
from schemas.dataset import Layout, NoDataset
from tests.pipeline.dataset.test_ledger import Killed, _kill_before_change
from tests.support.command import asked
from tests.support.played_dataset import PlayedDataset, scanned
from training.run.provenance import copy_provenance, note_tracks, tracks_of

SIZE = "resources.rows_per_shard=2"
SONGS = [
    scanned("a", "one", title="A", artist="X"),
    scanned("b", "two", title="B", artist="Y"),
    scanned("c", "one", title="A again", artist="X"),
    scanned("d", "three", title="C", artist="X", loudness=-60),
    scanned("e", "four", title="D", artist="Z"),
]


@pytest.fixture
def five_songs(played_dataset: PlayedDataset) -> PlayedDataset:
    return played_dataset.run(*SONGS, overrides=(SIZE,))


def reopened(dataset: PlayedDataset) -> PlayedDataset:
    with dataset.layout.store.writing():
        dataset.ledger = Ledger(dataset.layout).open()
    return dataset


def test_a_track_goes_with_its_copies_and_does_not_come_back(five_songs):
    found = find_forgettable(five_songs.layout, ["one"])
    assert found.tracks == {"a": "one", "c": "one"}
    forget(five_songs.layout, found, "takedown")
    assert dict(sorted(reopened(five_songs).verdicts.items())) == {"b": "kept", "d": "min_loudness_lufs", "e": "kept"}
    assert not verify_dataset(five_songs.layout)
    left = [scanned("f", "one"), *SONGS[1:2], *SONGS[3:]]  # the manifest comes without the rows, not without the bytes
    assert five_songs.run(*left, overrides=(SIZE,)).verdicts["f"] == "forgotten"


def test_a_near_copy_goes_too_unless_it_is_to_stay(five_songs):
    near = scanned("g", "five")
    near["fingerprint"] = scanned("b", "two")["fingerprint"]
    five_songs.run(*SONGS, near, overrides=(SIZE,))
    assert five_songs.verdicts["g"] == "near_duplicate"
    assert find_forgettable(five_songs.layout, ["b"]).tracks == {"b": "two", "g": "five"}
    assert find_forgettable(five_songs.layout, ["b"], copies=False).tracks == {"b": "two"}


def test_of_a_forgotten_row_only_hashes_are_left(five_songs):
    set_marks(five_songs.layout, {"a": "keep", "b": "drop"}, "mine")
    forget(five_songs.layout, find_forgettable(five_songs.layout, [], "artist = 'X'"), "asked to")
    assert {*reopened(five_songs).rows} == {"b", "e"}
    assert {*read_marks(five_songs.layout)} == {"b"}
    for path in five_songs.root.rglob("*.parquet"):
        assert b"A again" not in path.read_bytes()
        if "uri" in pq.read_schema(path).names:
            assert "songs/a.flac" not in pq.read_table(path)["uri"].to_pylist()
    stones = {row["row_id"]: (row["track_id"], row["reason"]) for row in read_tombstones(five_songs.layout).to_pylist()}
    assert stones == {"a": ("one", "asked to"), "c": ("one", "asked to"), "d": ("three", "asked to")}


def test_other_units_keep_their_files(five_songs):
    before = {path: path.read_bytes() for path in five_songs.root.rglob("*/*-*.parquet")}
    forget(five_songs.layout, find_forgettable(five_songs.layout, ["e"]), None)
    after = {path: path.read_bytes() for path in five_songs.root.rglob("*/*-*.parquet")}
    assert len(before) - len(before.keys() & after.keys()) == 1
    assert all(before[path] == after[path] for path in before.keys() & after.keys())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(killed_at=st.integers(0, 45))
def test_killed_at_any_step_it_is_finished_by_the_same_command(tmp_path_factory, killed_at):
    dataset = PlayedDataset(tmp_path_factory.mktemp("killed") / "dataset").run(*SONGS, overrides=(SIZE,))
    with pytest.MonkeyPatch.context() as patch:
        _kill_before_change(patch, killed_at)
        with suppress(Killed):
            forget(dataset.layout, find_forgettable(dataset.layout, [], "artist = 'X'"))
    with suppress(DataProblem):  # nothing is left to forget
        forget(dataset.layout, find_forgettable(dataset.layout, [], "artist = 'X'"))
    assert {*reopened(dataset).rows} == {"b", "e"}
    assert not verify_dataset(dataset.layout)
    assert {*read_tombstones(dataset.layout)["row_id"].to_pylist()} == {"a", "c", "d"}


def test_the_command_lists_models_that_have_learnt_from_it(five_songs, tmp_path):
    for name, tracks in {"run": ["one", "two"], "exported": [], "other": ["four"]}.items():
        (tmp_path / name).mkdir()
        if tracks:
            note_tracks(tmp_path / name, tracks)
    copy_provenance(tmp_path / "run", tmp_path / "exported")
    root = five_songs.root
    assert "Give --yes to confirm" in asked("forget", root, "--track", "one", code=2)
    assert len(reopened(five_songs).rows) == 5
    told = json.loads(asked("forget", root, "--track", "one", "--yes", "--json"))
    assert told["rows"] == {"a": "one", "c": "one"}
    assert [Path(model).name for model in told["models"]] == ["exported", "run"]
    assert "no row matches, nothing to forget" in asked("forget", root, "--where", "artist = 'nobody'", "--yes", code=1)
    assert "no row or track with the id q" in asked("forget", root, "--track", "q", "--yes", code=1)
    assert "--where nonsense(" in asked("forget", root, "--where", "nonsense(", "--yes", code=2)
    assert "nothing selected: use --track ID" in asked("forget", root, code=2)


def test_it_can_be_undone(five_songs):
    root = five_songs.root
    asked("forget", root, "--track", "two", "--yes")
    assert "1 rows may come back" in asked("forget", root, "--undo", "--track", "b")
    assert "none of these is forgotten" in asked("forget", root, "--undo", "--track", "b", code=1)
    assert reopened(five_songs).run(*SONGS, overrides=(SIZE,)).verdicts["b"] == "kept"


def test_a_run_never_loses_what_it_has_learnt_from(tmp_path):
    note_tracks(tmp_path, ["b", "a"])
    note_tracks(tmp_path, ["c"])
    assert tracks_of(tmp_path) == {"a", "b", "c"}
    assert tracks_of(tmp_path / "nothing") == set()


def test_a_folder_without_a_dataset_is_told(tmp_path):
    with pytest.raises(NoDataset, match="is no songmill dataset"):
        find_forgettable(Layout.at(tmp_path), ["a"])
