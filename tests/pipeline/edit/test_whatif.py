"""`songmill whatif` against the gates themselves, on rows whose figures are known."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.edit.whatif import what_if
from pipeline.planning.gates import Gate
from pipeline.planning.plan import Plan, StagePlan
from schemas import columns
from schemas.commits import Commit, RowState
from schemas.dataset import Layout
from schemas.files import file_digest
from tests.support.command import asked

SCHEMA = pa.schema(
    [
        *columns.IDENTITY,
        ("audio", columns.AUDIO),
        ("quality", columns.QUALITY),
        ("transcript", columns.TRANSCRIPT),
        ("tags", columns.TAGS),
        ("verdict", columns.VERDICT),
    ]
)
GATES = {"audio": {"min_duration_s": 10.0}, "quality": {"min_bandwidth_hz": 7000.0}}


def song(number: int, bandwidth_hz: float | None, seconds: float = 3600.0, status: str = "kept", **more) -> dict:
    """A song of an hour; without a bandwidth its later stages have not run."""
    measured = bandwidth_hz is not None and status == "kept"
    verdict = {"status": status, "stage": None, "reason": None, "message": None, "attempts": 1}
    return {
        "row_id": f"{number:016x}",
        "uri": f"{number}.flac",
        "title": f"Song {number}",
        "license": "CC0-1.0" if number % 2 else "MIT",
        "audio": {"duration_s": seconds},
        "quality": None if bandwidth_hz is None else {"bandwidth_hz": bandwidth_hz},
        "transcript": {"language": "en" if number % 3 else "de"} if measured else None,
        "tags": {"names": ["rock", "guitar"]} if measured else None,
        "verdict": verdict,
        **more,
    }


def dataset(root: Path, songs: list[dict]) -> Layout:
    files = {}
    for status, name in (("kept", "shards/train-000000.parquet"), ("", "quarantine/part-000000.parquet")):
        path = root / name
        rows = [row for row in songs if (row["verdict"]["status"] == "kept") == (status == "kept")]
        if rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
            files[name] = file_digest(path)
    stage = {"engine": "x", "params": {}, "reads": [], "working": [], "models": {}, "resources": {}, "fingerprint": "0"}
    names = ("audio", "quality", "transcript", "tags")
    plan = Plan(
        profile="small", columns={name: StagePlan(name=name, **stage) for name in names}, gates=GATES, dedup=None
    )
    states = {r["row_id"]: RowState(status=r["verdict"]["status"], track_id=None, basis="") for r in songs}
    (root / "_songmill/commits").mkdir(parents=True)
    (root / "_songmill/plan.json").write_text(plan.model_dump_json())
    (root / "_songmill/commits/000000.json").write_text(
        Commit(unit=0, plan=plan.id, files=files, rows=states, timings={}).model_dump_json()
    )
    return Layout.at(root)


@pytest.fixture
def songs() -> list[dict]:
    filtered = {"status": "filtered", "stage": "quality", "reason": "min_bandwidth_hz", "message": "", "attempts": 1}
    return [
        *(song(n, 8000.0 + 1000 * n) for n in range(8)),
        song(8, 6000.0, status="filtered", verdict=filtered),
        song(9, 5000.0, status="filtered", verdict={**filtered, "stage": "dedup", "reason": "near_duplicate"}),
        song(10, None, status="failed"),
    ]


def test_a_stricter_threshold_loses_hours(tmp_path, songs):
    found = what_if(dataset(tmp_path, songs), ["quality.min_bandwidth_hz=10500"], nearest=2)
    assert found.changes == {"quality.min_bandwidth_hz": (7000.0, 10500.0)}
    assert (found.kept_now.rows, found.kept_then.rows) == (8, 5)
    assert (found.kept_now.hours, found.kept_then.hours) == (8.0, 5.0)
    assert {reason: amount.rows for reason, amount in found.newly_rejected.items()} == {"quality.min_bandwidth_hz": 3}
    assert found.pending.rows == found.newly_kept.rows == 0
    assert [(near.value, near.rejected) for near in found.nearest["quality.min_bandwidth_hz"]] == [
        (9000.0, True), (10000.0, True), (11000.0, False), (12000.0, False),
    ]  # fmt: skip
    assert found.by["license"].keys() == {"CC0-1.0", "MIT"}
    assert found.by["language"]["de"].model_dump() == {"now": 3.0, "then": 2.0}
    assert found.by["tag"]["guitar"].model_dump() == {"now": 8.0, "then": 5.0}


def test_a_milder_one_brings_rows_back_that_have_to_be_worked_on_first(tmp_path, songs):
    found = what_if(dataset(tmp_path, songs), ["quality.min_bandwidth_hz=null"])
    assert (found.kept_then.rows, found.newly_kept.rows, found.pending.rows) == (8, 0, 1)
    assert found.changes == {"quality.min_bandwidth_hz": (7000.0, None)}
    assert found.nearest == {}


def test_rows_with_all_their_columns_come_back_at_once(tmp_path, songs):
    songs[8] |= {name: songs[0][name] for name in ("transcript", "tags")}
    found = what_if(dataset(tmp_path, songs), ["quality.min_bandwidth_hz=5500"])
    assert (found.kept_then.rows, found.newly_kept.rows, found.pending.rows) == (9, 1, 0)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 20_000), st.floats(1, 100)), min_size=1, max_size=12),
    st.floats(0, 20_000),
    st.floats(0, 100),
)
def test_rows_are_judged_as_the_gates_judge(tmp_path_factory, figures, bandwidth_hz, seconds):
    rows = [song(n, hz, s) for n, (hz, s) in enumerate(figures)]
    layout = dataset(tmp_path_factory.mktemp("dataset"), rows)
    found = what_if(layout, [f"quality.min_bandwidth_hz={bandwidth_hz!r}", f"audio.max_duration_s={seconds!r}"])
    gates = [
        Gate("audio", "duration_s", "min", 10.0),
        Gate("audio", "duration_s", "max", seconds),
        Gate("quality", "bandwidth_hz", "min", bandwidth_hz),
    ]
    read = pa.Table.from_pylist(rows, SCHEMA).to_pylist()
    kept = [row for row in read if not any(gate.rejects(row[gate.column]) for gate in gates)]
    assert found.kept_then.rows == len(kept)
    assert sum(amount.rows for amount in found.newly_rejected.values()) == len(rows) - len(kept)


def test_the_command_shows_it_and_names_what_is_wrong(tmp_path, songs):
    root = dataset(tmp_path / "dataset", songs).url
    said = " ".join(asked("whatif", root, "--set", "quality.min_bandwidth_hz=10500").split())
    for words in ("7000 -> 10500", "lost to quality.min_bandwidth_hz", "Song 3"):
        assert words in said
    told = json.loads(asked("whatif", root, "--set", "quality.min_bandwidth_hz=10500", "--json"))
    assert told["kept_then"] == {"rows": 5, "hours": 5.0}
    assert "no threshold given" in asked("whatif", root, code=2)
    for wrong in (
        "quality=5",
        "quality.min_bandwidth_hz",
        "quality.min_bandwidth_hz=high",
        "quality.min_bandwidth_hz=nan",
    ):
        assert "expected column.min_field=NUMBER" in asked("whatif", root, "--set", wrong, code=2)
    assert "has no column taste" in asked("whatif", root, "--set", "taste.min_good=1", code=2)
    assert "no such threshold" in asked("whatif", root, "--set", "quality.min_beauty=1", code=2)
    assert "is no songmill dataset" in asked("whatif", tmp_path, "--set", "quality.min_bandwidth_hz=1", code=1)
