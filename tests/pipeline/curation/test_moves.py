"""Files that are moved, copied, replaced and deleted between runs: one run settles it, and nothing complete is lost."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import read_marks, set_marks
from pipeline.dataset.verification import verify_dataset
from pipeline.edit.apply_thresholds import apply_thresholds
from pipeline.errors import DataProblem
from pipeline.ingest.manifest import row_id
from schemas.dataset import Layout
from tests.pipeline.dataset.test_ledger import Killed, _kill_before_change
from tests.support.in_process import play_cluster
from tests.support.world import CONTENTS, GARBAGE, KINDS, NAMES, World, apply, check, digests, make_contents


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return make_contents(tmp_path_factory.mktemp("contents"))


@pytest.fixture
def world(tmp_path, contents, monkeypatch) -> World:
    return World(tmp_path, contents, play_cluster(monkeypatch))


def test_a_renamed_and_a_deleted_song_settle_in_one_run(world):
    for i, name in enumerate(("a.wav", "b.wav", "c.wav")):
        world.put(name, i)
    world.settled()
    before = world.rows()[str(world.songs / "a.wav")]
    set_marks(world.layout, {row_id(str(world.songs / "a.wav")): "keep"}, "good")
    world.settled()
    world.move("a.wav", "deep/renamed.wav")
    (world.songs / "b.wav").unlink()
    world.put("new.wav", 3)
    outcome = world.settled()
    assert world.told() == dict.fromkeys(("b.wav", "c.wav", "deep/renamed.wav", "new.wav"), "kept")
    after = world.rows()[str(world.songs / "deep/renamed.wav")]
    changed = {"row_id", "uri"}
    assert {name: after[name] for name in after if name not in changed} == {
        name: before[name] for name in before if name not in changed
    }
    assert {uri for _, uri in world.ran} == {str(world.songs / "new.wav")}
    assert {row: mark.note for row, mark in read_marks(world.layout).items()} == {after["row_id"]: "good"}
    assert outcome.input.lines()[0] == "input: 1 new, 1 moved, 1 missing"
    assert outcome.input.facts()["files"] == {
        "new": [str(world.songs / "new.wav")],
        "moved": [(str(world.songs / "a.wav"), after["uri"])],
        "missing": [str(world.songs / "b.wav")],
        "dropped": [],
    }


def test_missing_rows_leave_when_they_are_told_to_and_come_back_with_their_files(world):
    for i, name in enumerate(("a.wav", "b.wav", "c.wav")):
        world.put(name, i)
    world.put("copy.wav", 1)
    world.settled()
    original = "b.wav" if world.told()["b.wav"] == "kept" else "copy.wav"
    (world.songs / "a.wav").unlink()
    (world.songs / "copy.wav").unlink()
    outcome = world.settled(drop_missing=True)
    assert [*map(os.path.basename, outcome.input.dropped)] == ["a.wav", "copy.wav"]
    assert not outcome.input.missing
    assert world.told() == {"b.wav": "kept", "c.wav": "kept"}
    assert not world.ran, f"{original} was kept, and its columns hold for its copy"
    world.put("a.wav", 0)
    world.settled()
    assert world.told() == dict.fromkeys(("a.wav", "b.wav", "c.wav"), "kept")


def test_a_manifest_may_name_files_that_are_away(world):
    a, b = world.put("a.wav", 0), world.put("b.wav", 1)
    manifest = world.root / "manifest.jsonl"
    manifest.write_text("".join(f'{{"uri": "songs/{name}"}}\n' for name in ("a.wav", "b.wav", "never.wav")))
    world.run(manifest)
    assert world.told() == {"a.wav": "kept", "b.wav": "kept", "never.wav": "Unreadable"}
    a.rename(world.root / "away.wav")
    outcome = world.run(manifest)
    assert world.told() == {"a.wav": "kept", "b.wav": "kept", "never.wav": "Unreadable"}
    assert [Path(uri).name for uri in outcome.input.missing] == ["a.wav", "never.wav"]
    assert not world.ran
    for _ in range(2):
        world.run(manifest, drop_missing=True)
        assert world.told() == {"a.wav": "Unreadable", "b.wav": "kept", "never.wav": "Unreadable"}
    assert not world.ran
    b.unlink()
    before = digests(world.layout)
    with pytest.raises(DataProblem, match="not mounted"):
        world.run(manifest, drop_missing=True)
    assert digests(world.layout) == before
    assert world.run(manifest).input.missing
    assert world.told()["b.wav"] == "kept"


def test_songs_manifest_and_dataset_move_together(world):
    names = ("a.wav", "b.wav", "deep/c.wav", "again.wav", "words.wav")
    for content, name in zip((0, 1, 2, 2, GARBAGE), names, strict=True):
        world.put(name, content)
    (world.songs / "manifest.jsonl").write_text("".join(f'{{"uri": "{name}", "title": "{name}"}}\n' for name in names))
    world.run(world.songs / "manifest.jsonl")
    before = world.told()
    (world.root / "elsewhere").mkdir()
    for name in ("songs", "dataset"):
        (world.root / name).rename(world.root / "elsewhere" / name)
    world.root /= "elsewhere"
    outcome = world.run(world.songs / "manifest.jsonl")
    assert len(outcome.input.moved) == 5
    assert not world.ran
    assert world.told() == before
    assert not verify_dataset(world.layout)
    assert world.run(world.songs / "manifest.jsonl").worked_on == 0


@pytest.mark.parametrize("there", [True, False])
def test_another_plan_waits_for_a_file_that_is_away_and_for_no_other(world, there):
    for i, name in enumerate(("a.wav", "b.wav", "c.wav")):
        world.put(name, i)
    world.settled()
    (world.songs / "a.wav").rename(world.root / "a.wav")
    world.overrides = ["length.fails_on=nobody", "audio.min_duration_s=1.5"]
    outcome = world.settled(update=True)
    assert outcome.input.waiting == 1
    assert "1 rows could not be brought up to date" in outcome.input.lines()[-1]
    assert world.told() == dict.fromkeys(("a.wav", "b.wav", "c.wav"), "kept")
    assert {Path(uri).name for stage, uri in world.ran if stage == "length"} == {"b.wav", "c.wav"}
    plans = {commit.plan for commit in Ledger(world.layout).read().commits.values()}
    assert len(plans) == 2
    world.overrides += ["quality.silence_dbfs=-50"]  # the scan has to be made anew as well
    assert world.settled(update=True).input.waiting == 1
    assert world.told() == dict.fromkeys(("a.wav", "b.wav", "c.wav"), "kept")
    if there:
        (world.root / "a.wav").rename(world.songs / "a.wav")
        assert world.settled().input.waiting == 0
        assert {commit.plan for commit in Ledger(world.layout).read().commits.values()}.isdisjoint(plans)
    else:
        world.settled(drop_missing=True)
        assert world.told() == dict.fromkeys(("b.wav", "c.wav"), "kept")


@pytest.mark.parametrize("bound", [2.2, 2.7])
def test_other_thresholds_never_fail_a_row_whose_file_is_away(world, bound):
    for i, name in enumerate(("a.wav", "b.wav", "c.wav", "short.wav")):
        world.put(name, (0, 2, 3, 5)[i])
    world.settled()
    shutil.move(world.songs, world.root / "away")
    world.put("other.wav", 4)
    world.overrides = [f"length.max_seconds={bound}", "audio.min_duration_s=0.1"]
    outcome = world.settled(update=True)
    assert outcome.input.waiting == 1, "what was too short would be kept now, and nobody has its columns"
    assert world.told() == {
        "a.wav": "kept",
        "b.wav": "max_seconds" if bound < 2.5 else "kept",
        "c.wav": "max_seconds",
        "other.wav": "max_seconds",
        "short.wav": "min_duration_s",
    }


OPS = st.tuples(st.sampled_from(KINDS), st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(CONTENTS))
STORIES = {
    "first": st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(CONTENTS)), min_size=2, max_size=6),
    "steps": st.lists(st.tuples(st.lists(OPS, min_size=1, max_size=4), st.booleans()), min_size=1, max_size=4),
}
UNHURRIED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=3, suppress_health_check=UNHURRIED)  # a dozen runs each; the slow test has more
@given(**STORIES)
def test_one_run_settles_whatever_has_happened_to_the_files(tmp_path_factory, contents, first, steps):
    settles(tmp_path_factory, contents, first, steps)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=UNHURRIED)
@given(**STORIES)
def test_one_run_settles_whatever_has_happened_to_the_files_150_times(tmp_path_factory, contents, first, steps):
    settles(tmp_path_factory, contents, first, steps)


def settles(tmp_path_factory, contents, first, steps):
    with pytest.MonkeyPatch.context() as patch:
        world = World(tmp_path_factory.mktemp("world"), contents, play_cluster(patch))
        for name, content in first:
            world.put(name, content)
        world.settled()
        for ops, drop in steps:
            before = world.rows()
            for op in ops:
                apply(world, op)
            if not world.files:
                world.put("a.wav", 0)
            drop = drop and not world.refuses_to_drop(before)
            outcome = world.settled(drop_missing=drop)
            check(world, before, outcome, drop)
        fresh = Layout.at(world.root / "fresh")
        world.run(out=world.root / "fresh")
        anew, rows = world.rows(fresh), world.rows()
        status = {
            layout: sorted((r["track_id"], r["verdict"]["status"]) for u, r in table.items() if u in anew)
            for layout, table in (("fresh", anew), ("old", rows))
        }
        assert status["fresh"] == status["old"]


def test_whatif_judges_rows_that_wait_for_their_files_too(world):
    for i, name in enumerate(("a.wav", "b.wav", "c.wav")):
        world.put(name, (0, 2, 3)[i])
    world.settled()
    (world.songs / "a.wav").rename(world.root / "a.wav")
    world.overrides = ["length.fails_on=nobody"]
    assert world.settled(update=True).input.waiting == 1
    apply_thresholds(world.layout, ["length.max_seconds=1.5"])
    assert world.told() == dict.fromkeys(("a.wav", "b.wav", "c.wav"), "max_seconds")
    apply_thresholds(world.layout, ["length.max_seconds=2.7"])
    assert world.told() == {"a.wav": "kept", "b.wav": "kept", "c.wav": "max_seconds"}
    world.overrides += ["length.max_seconds=2.7"]
    assert world.settled().input.waiting == 1
    (world.root / "a.wav").rename(world.songs / "a.wav")
    assert world.settled().input.waiting == 0
    assert len({commit.plan for commit in Ledger(world.layout).read().commits.values()}) == 1


def test_a_run_that_is_killed_while_it_renames_is_finished_by_the_next(world, monkeypatch):
    for i, name in enumerate(("a.wav", "b.wav", "c.wav", "d.wav", "deep/a.wav")):
        world.put(name, i)
    world.settled()
    set_marks(world.layout, {row_id(str(world.songs / name)): "keep" for name in ("a.wav", "b.wav")}, "good")
    world.settled()
    before = world.rows()
    world.swap("a.wav", "deep/a.wav")
    world.move("b.wav", "e.wav")
    for step in (0, 2, 5, 9, 14):
        with monkeypatch.context() as patch:
            _kill_before_change(patch, step)
            with suppress(Killed):
                world.run()
    world.settled()
    rows = world.rows()
    moved = {"a.wav": "deep/a.wav", "deep/a.wav": "a.wav", "b.wav": "e.wav"}
    for uri, row in before.items():
        name = str(Path(uri).relative_to(world.songs))
        after = rows.pop(str(world.songs / moved.get(name, name)))
        assert (after["track_id"], after["length"], after["verdict"]["status"]) == (
            row["track_id"],
            row["length"],
            "kept",
        )
    assert not rows
    marked = {row_id(str(world.songs / name)) for name in ("deep/a.wav", "e.wav")}
    assert read_marks(world.layout).keys() == marked
    assert not world.ran
