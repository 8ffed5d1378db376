"""Records of runs, and the command that shows them."""

import json
import threading
from pathlib import Path

import pytest

from pipeline.dataset.runs import events, follow, read_runs, recorded, state
from pipeline.dataset.writing import exclusive_lock
from schemas.dataset import Layout
from tests.support.command import asked


class Counts:
    def facts(self) -> dict[str, object]:
        return {"rows": {"kept": 3}, "nodes": 2}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.at(tmp_path / "dataset")


@pytest.fixture
def runs(layout: Layout) -> Path:
    """The folder of the records."""
    folder = Path(layout.url) / "_songmill" / "runs"
    folder.mkdir(parents=True)
    return folder


def test_a_run_is_on_record_with_settings_versions_and_what_happened(layout, runs):
    with recorded(layout, "curate", "plan1", {"stages": ["decode"]}) as record:
        record.event("node_lost", node="host-2")
        record.look(Counts())
    (run,) = read_runs(layout)
    assert (run.command, run.plan, run.settings, run.outcome) == ("curate", "plan1", {"stages": ["decode"]}, "finished")
    assert {"python", "songmill", "ray"} <= run.versions.keys()
    assert run.ended
    assert run.ended >= run.started
    assert run.facts == {"rows": {"kept": 3}, "nodes": 2}
    told = [event["event"] for event in events(layout, run)]
    assert told == ["run_started", "node_lost", "progress", "run_ended"]
    lines = (runs / run.id / "events.jsonl").read_text().splitlines()
    assert all(json.loads(line)["run"] == run.id for line in lines)


def test_how_a_run_ended_is_told(layout):
    with pytest.raises(ValueError, match="no room"), recorded(layout, "curate", "", {}):
        raise ValueError("no room")
    with pytest.raises(KeyboardInterrupt), recorded(layout, "curate", "", {}):
        raise KeyboardInterrupt
    failed, interrupted = read_runs(layout)
    assert (failed.outcome, failed.error) == ("failed", "ValueError: no room")
    assert interrupted.outcome == "interrupted"


def test_a_run_without_an_end_is_running_while_the_dataset_is_locked_and_else_was_killed(layout):
    with recorded(layout, "curate", "", {}):
        (run,) = read_runs(layout)
        assert state(layout, run, run) == "killed"
        with exclusive_lock(layout):
            assert state(layout, run, run) == "running"
            later = run.model_copy(update={"id": run.id + "1"})
            assert state(layout, run, later) == "killed"


def test_what_a_killed_run_has_left_is_read_as_far_as_it_goes(layout, runs):
    with recorded(layout, "curate", "", {}):
        (run,) = read_runs(layout)
    with (runs / run.id / "events.jsonl").open("a") as log:
        log.write('{"event": "half a li')
    (runs / "20200101T000000.000Z-1").mkdir()
    (runs / "20200101T000000.000Z-1" / "run.json").write_text("{")
    assert [each.id for each in read_runs(layout)] == [run.id]
    assert [event["event"] for event in events(layout, run)] == ["run_started", "run_ended"]


def test_a_live_run_is_followed_to_its_end(layout):
    seen: list[str] = []
    with exclusive_lock(layout), recorded(layout, "curate", "", {}) as record:
        (run,) = read_runs(layout)
        follower = threading.Thread(
            target=lambda: seen.extend(event["event"] for event in follow(layout, run, every_s=0.01))
        )
        follower.start()
        record.event("node_found", node="a")
    follower.join(10)
    assert not follower.is_alive()
    assert seen == ["run_started", "node_found", "run_ended"]


def test_old_records_go(layout, runs):
    for number in range(105):
        (runs / f"2020{number:04d}").mkdir()
        (runs / f"2020{number:04d}" / "events.jsonl").touch()
    with recorded(layout, "curate", "", {}):
        pass
    assert len(list(runs.iterdir())) == 101


def test_the_command_lists_shows_and_follows(layout, runs):
    with recorded(layout, "curate", "plan1", {"profile": "small"}) as record:
        record.event("node_lost", node="host-2\x1b[2J")
        record.look(Counts())
    (run,) = read_runs(layout)
    listed = asked("runs", layout.url)
    assert run.id in listed
    assert "finished" in listed
    assert json.loads(asked("runs", layout.url, "--json"))[0]["state"] == "finished"
    shown = asked("runs", layout.url, run.id[:8])
    assert "profile: small" in shown
    assert "node_lost" in shown
    assert "\x1b" not in shown
    assert len(json.loads(asked("runs", layout.url, run.id, "--json"))["events"]) == 4
    assert asked("runs", layout.url, "--follow").count("\n") == 4
    assert "has no run 1999 on record" in asked("runs", layout.url, "1999", code=2)


def test_a_dataset_of_before_has_no_run_on_record_and_a_folder_is_no_dataset(tmp_path):
    (tmp_path / "old" / "_songmill").mkdir(parents=True)
    (tmp_path / "old" / "_songmill" / "plan.json").write_text("{}")
    assert "no run is on record" in asked("runs", tmp_path / "old")
    assert "is no songmill dataset" in asked("runs", tmp_path, code=1)
