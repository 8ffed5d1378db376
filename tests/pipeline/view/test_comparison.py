"""`songmill inspect --compare`: what differs between two datasets, and nothing else."""

import json
from pathlib import Path

import pytest

from pipeline.dataset.ledger import Ledger
from pipeline.view.comparison import compare
from schemas.dataset import Layout
from tests.support.command import asked
from tests.support.rows import row, write_rows

GATES = {"quality": {"min_bandwidth_hz": 7000.0}}


@pytest.fixture
def before(tmp_path: Path) -> Layout:
    return write_rows(tmp_path / "before", [row(i, rhythm={"bpm": 100.0 + i}) for i in range(8)], gates=GATES)


@pytest.fixture
def after(tmp_path: Path) -> Layout:
    """One row more, one less, one turned away; faster songs; another rhythm and another threshold."""
    rows = [row(i, rhythm={"bpm": 200.0 + i}) for i in range(1, 7)]
    rows += [row(7, "filtered", "quality", "min_bandwidth_hz"), row(9, license="MIT", rhythm={"bpm": 100.0})]
    gates = {"quality": {"min_bandwidth_hz": 15000.0}}
    return write_rows(tmp_path / "after", rows, gates=gates, fingerprints={"rhythm": "another"})


def test_a_dataset_does_not_differ_from_itself(before: Layout):
    found = compare(before, before)
    assert (found.only_a, found.only_b, found.moved, found.plan) == (0, 0, [], [])
    assert not any(found.examples.values())
    assert all(pair.a == pair.b for pair in (*found.rows.values(), *found.hours.values()))
    assert all(shift.distance in (0, None) and shift.a == shift.b for shift in found.shifts)


def test_counts_reasons_figures_values_and_plan(before: Layout, after: Layout):
    found = compare(before, after)
    assert {name: (pair.a, pair.b) for name, pair in found.rows.items()} == {
        "kept": (8, 7),
        "filtered": (0, 1),
        "failed": (0, 0),
        "total": (8, 8),
    }
    assert {name: (pair.a, pair.b) for name, pair in found.reasons.items()} == {
        "filtered quality.min_bandwidth_hz": (0, 1)
    }
    shifts = {shift.column: shift for shift in found.shifts}
    assert shifts["rhythm.bpm"].a == [101.75, 103.5, 105.25]
    assert shifts["rhythm.bpm"].b[1] == pytest.approx(203)
    assert shifts["rhythm.bpm"].distance == pytest.approx(6 / 7, abs=0.06)  # all but the slow one; bins are coarse
    assert shifts["quality.loudness_lufs"].distance == 0
    licenses = {name: (pair.a, pair.b) for name, pair in found.values["license"].items()}
    assert licenses == {"CC-BY-4.0": (8, 6), "MIT": (0, 1)}
    assert "~ column rhythm: its revision, files or inputs changed" in found.plan
    assert "~ gate quality.min_bandwidth_hz: 7000.0 -> 15000.0" in found.plan


def test_rows_of_one_side_and_rows_that_went_another_way(before: Layout, after: Layout):
    found = compare(before, after)
    assert (found.matched_by, found.only_a, found.only_b) == ("row_id", 1, 1)
    assert [(m.a, m.b, m.rows) for m in found.moved] == [("kept", "filtered quality.min_bandwidth_hz", 1)]
    titles = {kind: [example.title for example in examples] for kind, examples in found.examples.items()}
    assert titles == {"only_a": ["Song 0"], "only_b": ["Song 9"], "moved": ["Song 7"]}


def test_other_paths_are_matched_by_their_tracks(before: Layout, tmp_path: Path):
    moved = [row(i, row_id=f"elsewhere {i}", rhythm={"bpm": 100.0 + i}) for i in range(8)]
    copy = row(50, "filtered", "dedup", "exact_duplicate", track_id="track 3", row_id="a copy")
    silent = row(51, "failed", "decode", "NotAudio", track_id=None, audio=None)
    found = compare(before, write_rows(tmp_path / "moved", [*moved, copy, silent]))
    assert (found.matched_by, found.only_a, found.only_b, found.moved) == ("track_id", 0, 1, [])


def test_a_dataset_without_rows_is_compared_too(before: Layout, tmp_path: Path):
    empty = Layout.at(tmp_path / "empty")
    with empty.store.writing():
        Ledger(empty).open()
        empty.store.publish({empty.plan: before.store.get(before.plan)})
    found = compare(before, empty)
    assert (found.only_a, found.only_b) == (8, 0)
    assert found.rows["kept"].b == 0


def test_the_command_tells_it_and_json_has_it_all(before: Layout, after: Layout):
    said = " ".join(asked("inspect", before.url, "--compare", after.url).split())
    for part in (
        "kept rows 8 7 -1",
        "~ gate quality.min_bandwidth_hz: 7000.0 -> 15000.0",
        "(matched by row_id): 1 only in a, 1 only in b, 1 with different verdicts",
        "1: kept -> filtered quality.min_bandwidth_hz",
        "license CC-BY-4.0 8/6, MIT 0/1",
    ):
        assert part in said
    assert json.loads(asked("inspect", before.url, "--compare", after.url, "--json"))["rows"]["kept"] == {
        "a": 8,
        "b": 7,
    }


def test_the_other_folder_must_be_a_dataset(before: Layout, tmp_path: Path):
    assert "is no songmill dataset" in asked("inspect", before.url, "--compare", tmp_path / "nothing", code=1)
