"""What is said of every row at once, before any model has run: by people, licences, thresholds and likeness."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curation.prefilter import judge_scan
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import Mark
from pipeline.dataset.scan_table import scan_schema
from pipeline.dataset.sketches import with_bands
from pipeline.planning.config import build_config
from pipeline.planning.dag import Dag, build_dag
from pipeline.planning.plan import Plan, make_plan
from tests.pipeline.curation.test_duplicates import fingerprints_of
from tests.support.played_dataset import scanned

THRESHOLDS = ("audio.min_duration_s=5", "audio.max_duration_s=600", "quality.min_loudness_lufs=-40")


class Judge:
    """A DAG with some thresholds, and its plan."""

    def __init__(self) -> None:
        stages = ("decode", "quality", "fingerprint", "key")
        config = build_config(only=stages, overrides=THRESHOLDS, input="songs", output=Path("dataset"))
        self.dag: Dag = build_dag(config, {}, {})
        self.plan: Plan = make_plan(config, self.dag)
        self.schema = scan_schema(self.dag)

    def __call__(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        licenses: list[str] | None = None,
        dedup: bool = True,
        committed: Mapping[str, str] | None = None,
        marks: Mapping[str, str] | None = None,
        **more: Any,
    ) -> dict[str, dict[str, Any]]:
        """Rows by id, judged; `marks` are row id -> kind, `committed` is row id -> track id of those kept before."""
        changes = {"require_license": licenses, **({} if dedup else {"dedup": None})}
        scan = with_bands(pa.Table.from_pylist(list(rows), self.schema)).drop_columns(["timing"])
        kept = {row_id: SimpleNamespace(status="kept", track_id=track) for row_id, track in (committed or {}).items()}
        said = {
            row_id: Mark(mark=cast(Any, kind), marked_at=datetime.now(UTC)) for row_id, kind in (marks or {}).items()
        }
        judged = judge_scan(
            scan,
            self.dag,
            self.plan.model_copy(update=changes),
            cast(Ledger, SimpleNamespace(rows=kept)),
            partial(fingerprints_of, scan),
            said,
            **more,
        )
        assert judged.drop_columns(["verdict", "dedup"]).equals(scan.drop_columns(["verdict"]))
        return {row["row_id"]: row for row in judged.to_pylist()}


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def reasons(judged: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {row_id: row["verdict"]["reason"] or row["verdict"]["status"] for row_id, row in judged.items()}


def song(name: str, duration_s: float | None = 30.0, **facts: Any) -> dict[str, Any]:
    """A row of the scan table of this length."""
    row = scanned(name, f"bytes of {name}", **facts)
    return {**row, "audio": duration_s and {**(row["audio"] or {}), "duration_s": duration_s}}


def test_a_rejected_row_says_by_what_and_keeps_its_attempts(judge):
    row = song("a", loudness=-50.25)
    row["verdict"]["attempts"] = 2
    assert judge([row])["a"]["verdict"] == {
        "status": "filtered",
        "stage": "quality",
        "reason": "min_loudness_lufs",
        "message": "quality.loudness_lufs -50.25 is below min_loudness_lufs -40",
        "attempts": 2,
    }


def test_people_come_before_licences_these_before_thresholds_and_these_before_likeness(judge):
    quiet_copy = {"loudness": -60.0, "license": "MIT"}
    rows = [song(name, **quiet_copy) for name in "abcd"]
    for row in rows:
        row["track_id"] = "one"
    rows[2]["license"] = rows[3]["license"] = "CC0-1.0"
    rows[3]["quality"]["loudness_lufs"] = -14.0
    judged = judge([*rows, {**rows[3], "row_id": "e"}], licenses=["CC0-1.0"], marks={"a": "drop"})
    assert reasons(judged) == {
        "a": "dropped",
        "b": "not_allowed",
        "c": "min_loudness_lufs",
        "d": "kept",
        "e": "exact_duplicate",
    }
    assert judged["e"]["verdict"]["message"] == "duplicate of d (songs/d.flac), similarity 1.000"
    assert judged["e"]["dedup"] == {"duplicate_of": "d", "similarity": 1.0, "model": "songmill.dedup@0.4"}
    assert judged["d"]["dedup"] == {"duplicate_of": None, "similarity": None, "model": "songmill.dedup@0.4"}
    assert [judged[name]["dedup"] for name in "abc"] == [None] * 3


def test_a_row_that_a_person_wants_kept_passes_thresholds_and_may_be_a_copy_but_needs_its_licence(judge):
    rows = [song("a", license="MIT"), song("b", license="MIT", loudness=-60.0), song("c", license="CC0-1.0")]
    rows[1]["track_id"] = rows[0]["track_id"]
    marks = dict.fromkeys("bc", "keep")
    assert reasons(judge(rows, licenses=["MIT"], marks=marks)) == {"a": "kept", "b": "kept", "c": "not_allowed"}


def test_a_file_too_long_to_be_decoded_is_filtered_by_its_length_not_failed_by_a_later_stage(judge):
    failed = {"status": "failed", "reason": "NoSamples", "message": "none", "attempts": 1}
    long, cut = song("a", 5000.0), song("b", 5000.0)
    long["verdict"] = {**failed, "stage": "quality"}
    cut["verdict"] = {**failed, "stage": "decode"}
    short = {**long, "row_id": "c", "audio": {**long["audio"], "duration_s": 30.0}}
    assert reasons(judge([long, cut, short])) == {"a": "max_duration_s", "b": "NoSamples", "c": "NoSamples"}


def test_what_was_forgotten_stays_away_however_it_failed_or_is_marked(judge):
    rows = [song("a"), scanned("b", "bytes of a", works=False), song("c")]
    judged = judge(rows, forgotten={"bytes of a"}, marks={"a": "keep"})
    assert reasons(judged) == {"a": "forgotten", "b": "forgotten", "c": "kept"}


def test_of_copies_the_committed_one_stays_else_one_whose_file_is_there(judge):
    rows = [song("a"), {**song("b"), "track_id": "bytes of a"}]
    assert reasons(judge(rows)) == {"a": "kept", "b": "exact_duplicate"}
    assert reasons(judge(rows, committed={"b": "bytes of a"})) == {"a": "exact_duplicate", "b": "kept"}
    assert reasons(judge(rows, committed={"b": "other bytes"})) == {"a": "kept", "b": "exact_duplicate"}
    assert reasons(judge(rows, missing={"a"})) == {"a": "exact_duplicate", "b": "kept"}


def test_without_a_search_for_copies_there_are_none(judge):
    rows = [song("a"), {**song("b"), "track_id": "bytes of a"}]
    judged = judge(rows, dedup=False)
    assert reasons(judged) == {"a": "kept", "b": "kept"}
    assert [row["dedup"] for row in judged.values()] == [None, None]


@st.composite
def songs(draw: st.DrawFn) -> dict[str, Any]:
    """A song next to some threshold, which may have failed in a stage of the scan."""
    row = song(
        "?",
        draw(st.sampled_from([None, 4.9, 5.0, 600.0, 600.1])),
        loudness=draw(st.sampled_from([None, -40.0, -40.1, 0.0])),
        license=draw(st.sampled_from([None, "MIT", "CC0-1.0"])),
    )
    if stage := draw(st.sampled_from([None, "decode", "quality", "fingerprint"])):
        row["verdict"] = {"status": "failed", "stage": stage, "reason": "Broken", "message": "so", "attempts": 1}
    return row


@settings(max_examples=40)
@given(
    drawn=st.lists(songs(), min_size=1, max_size=8),
    licenses=st.none() | st.just(["MIT"]),
    marks=st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["keep", "drop"])),
)
def test_all_rows_at_once_are_judged_as_each_alone_and_as_thresholds_say(judge, drawn, licenses, marks):
    rows = [{**row, "row_id": name, "uri": f"songs/{name}.flac"} for name, row in zip("abcdefgh", drawn, strict=False)]
    judged = judge(rows, licenses=licenses, marks=marks, dedup=False)
    alone: dict[str, Any] = {}
    for row in rows:
        alone |= judge([row], licenses=licenses, marks=marks, dedup=False)
    assert judged == alone
    for row in rows:
        assert judged[row["row_id"]]["verdict"]["status"] == _status(row, licenses, marks.get(row["row_id"]))


def _status(row: Mapping[str, Any], licenses: list[str] | None, mark: str | None) -> str:
    """The same in plain words, for the thresholds of these tests."""
    length = (row["audio"] or {}).get("duration_s")
    loudness = row["quality"]["loudness_lufs"]
    failed_in = row["verdict"]["stage"]
    if mark == "drop":
        return "filtered"
    if licenses and failed_in is None and row["license"] not in licenses:
        return "filtered"
    too_long = length is not None and not 5 <= length <= 600 and failed_in != "decode"
    too_quiet = loudness is not None and loudness < -40 and failed_in not in ("decode", "quality")
    if mark != "keep" and (too_long or too_quiet):
        return "filtered"
    return str(row["verdict"]["status"])
