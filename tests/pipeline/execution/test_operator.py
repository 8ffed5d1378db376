"""An operator in this process: toy stages, no Ray, no models."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.execution.operator
from pipeline.execution.fate import Fate
from pipeline.execution.operator import IDENTITY, Operator, OperatorSpec, StageCannotStart
from pipeline.planning.dag import Node
from pipeline.planning.gates import Gate
from schemas import columns
from stages.base import Params
from tests.support.places import ROOT
from tests.support.toy_stages import Broken, Echo, Letters, LettersParams

KEPT = {"status": "kept", "stage": None, "reason": None, "message": None, "attempts": 0}
SHORT = Gate("letters", "count", "min", 3.0)
LONG = Gate("letters", "count", "max", 6.0)
IN = pa.schema([("row_id", pa.string()), ("title", pa.string()), ("verdict", columns.VERDICT)])
OUT = pa.schema([*IN, ("letters", Letters.type), ("echo", Echo.type), ("timing", columns.TIMING)])


@pytest.fixture(scope="module", autouse=True)
def threads_as_they_are() -> Iterator[None]:
    """An operator is alone in its process; these are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.execution.operator, "_limit_threads", lambda: None)
        yield


class Notes:
    """A recorder that remembers everything."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.noted: list[tuple[str, str]] = []

    def note(self, stage: str, row_ids: Sequence[str] = ()) -> None:
        self.noted.append((stage, "".join(row_ids)))


def node(name: str, params: Params | None = None) -> Node:
    return Node(name, f"tests.support.toy_stages:{name.title()}", params or Params(), {}, "fingerprint")


LETTERS, ECHO = node("letters", LettersParams()), node("echo")


def operator(*nodes: Node, **spec: Any) -> Operator:
    """An operator with these stages, by default both."""
    given = {"gates": (), "carried": OUT, "prepare": None, "is_last": True} | spec
    return Operator(OperatorSpec(nodes=nodes or (LETTERS, ECHO), **given), Notes())


def block(*titles: str, schema: pa.Schema = IN, **more: Sequence[Any]) -> pa.Table:
    """Rows a, b, c and so on with these titles; `more` has other columns, whose types the schema says."""
    rows = [{"row_id": chr(97 + i), "title": title, "verdict": KEPT} for i, title in enumerate(titles)]
    for name, values in more.items():
        rows = [{**row, name: value} for row, value in zip(rows, values, strict=True)]
    return pa.Table.from_pylist(rows, schema)


def put_through(operator: Operator, rows: pa.Table, fates: Mapping[str, Fate] | None = None) -> list[dict[str, Any]]:
    return operator(rows, fates or {})[1].to_pylist()


def verdicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str | None, str | None]]:
    return {row["row_id"]: tuple(row["verdict"][name] for name in ("status", "stage", "reason")) for row in rows}


def stages_run(rows: Sequence[Mapping[str, Any]]) -> list[list[str] | None]:
    return [row["timing"] and [time["stage"] for time in row["timing"]] for row in rows]


def test_every_declared_column_and_no_other_comes_out_with_what_it_took():
    measuring = operator()
    report, rows = measuring(block("abba", "queen"), {})
    assert rows.schema == OUT
    first, second = rows.to_pylist()
    assert first["letters"] == {"count": 4, "vowels": 0.5, "model": "songmill.letters@r1"}
    assert second["echo"] == {"text": "neeuq", "count": 5, "model": "songmill.echo@r1"}
    assert first["verdict"] == {**KEPT, "attempts": 1}
    assert stages_run([first, second]) == [["letters", "echo"]] * 2
    assert all(0 <= time["seconds"] < 5 for time in first["timing"])
    assert (report.passed, report.status, report.audio_s) == ({"letters": 2, "echo": 2}, {"kept": 2}, 0.0)
    assert measuring.recorder.noted == [("letters", "ab"), ("echo", "ab")]


def test_working_columns_come_out_where_a_later_operator_reads_them_and_only_the_last_one_counts_verdicts():
    report, rows = operator(LETTERS, carried=pa.schema([*IN, ("backwards", pa.string())]), is_last=False)(
        block("abba"), {}
    )
    assert rows.column_names == ["row_id", "title", "verdict", "backwards"]
    assert rows["backwards"].to_pylist() == ["abba"]
    assert (report.passed, report.status) == ({"letters": 1}, {})


def test_an_error_costs_one_row_and_later_stages_pass_it_over():
    measuring = operator()
    rows = put_through(measuring, block("abba", "wham!", "queen"))
    assert verdicts(rows) == {
        "a": ("kept", None, None),
        "b": ("failed", "letters", "Unlucky"),
        "c": ("kept", None, None),
    }
    assert rows[1]["verdict"]["message"] == "wham!: as configured"
    assert rows[1]["letters"] is None
    assert rows[1]["echo"] is None
    assert stages_run(rows) == [["letters", "echo"], ["letters"], ["letters", "echo"]]
    assert measuring.recorder.noted == [("letters", "abc"), ("echo", "ac")]
    assert measuring.recorder.passed == {"letters": 3, "echo": 2}


def test_an_error_that_nobody_foresaw_says_where_it_was_raised():
    (row,) = put_through(operator(), block("who?"))
    assert verdicts([row]) == {"a": ("failed", "echo", "ValueError")}
    assert row["verdict"]["message"].startswith("no echo (raised in process, toy_stages.py:")
    assert row["letters"]["count"] == 4  # what came before is kept


def test_a_stage_that_exits_costs_one_row_too_and_a_long_message_is_cut():
    (row, other) = put_through(operator(), block("a" * 3000 + "^", "abba"))
    assert verdicts([row, other]) == {"a": ("failed", "echo", "SystemExit"), "b": ("kept", None, None)}
    assert len(row["verdict"]["message"]) == 2000


def test_the_first_threshold_of_a_column_that_rejects_a_row_is_its_verdict():
    rows = put_through(
        operator(gates=(SHORT, LONG, Gate("letters", "vowels", "min", 0.3))), block("by", "abba", "blur")
    )
    assert verdicts(rows) == {
        "a": ("filtered", "letters", "min_count"),
        "b": ("kept", None, None),
        "c": ("filtered", "letters", "min_vowels"),
    }
    assert rows[0]["verdict"] | {"attempts": 1} == rows[0]["verdict"]
    assert rows[0]["verdict"]["message"] == "letters.count 2 is below min_count 3"
    assert rows[0]["letters"]["count"] == 2
    assert stages_run(rows) == [["letters"], ["letters", "echo"], ["letters"]]


def test_a_spared_row_is_turned_away_by_no_threshold():
    rows = put_through(operator(gates=(SHORT,), spared=frozenset("a")), block("by", "by"))
    assert [status for status, *_ in verdicts(rows).values()] == ["kept", "filtered"]
    assert rows[0]["echo"]["text"] == "yb"


def test_a_row_that_comes_rejected_stays_as_it_is():
    failed = {"status": "failed", "stage": "decode", "reason": "TruncatedAudio", "message": "cut", "attempts": 2}
    measuring = operator(gates=(SHORT,))
    (row,) = put_through(measuring, block("by", verdict=[failed]))
    assert row == {"row_id": "a", "title": "by", "verdict": failed, "letters": None, "echo": None, "timing": None}
    assert not measuring.recorder.noted


class TestStoredColumns:
    """Rows that bring columns along."""

    SCHEMA = pa.schema([*IN, OUT.field("letters"), OUT.field("echo"), OUT.field("timing")])
    letters = {"count": 2, "vowels": 0.0, "model": "stored"}
    echo = {"text": "stored", "count": 2, "model": "stored"}

    def test_are_not_measured_again_but_judged(self):
        rows = block("abba", "abba", letters=[self.letters] * 2, echo=[self.echo] * 2, schema=self.SCHEMA)
        through = put_through(operator(gates=(SHORT,), spared=frozenset("b")), rows)
        assert verdicts(through) == {"a": ("filtered", "letters", "min_count"), "b": ("kept", None, None)}
        assert [row["letters"] for row in through] == [self.letters] * 2
        assert stages_run(through) == [None, None]

    def test_are_measured_again_where_a_stage_that_is_due_reads_a_working_column_of_their_maker(self):
        rows = block("abba", letters=[self.letters], echo=[None], schema=self.SCHEMA)
        (row,) = put_through(operator(), rows)
        assert row["letters"]["count"] == 4
        assert row["echo"]["text"] == "abba"

    def test_of_rejected_rows_call_for_no_stage(self):
        rows = block("abba", "by", letters=[self.letters, None], echo=[self.echo, None], schema=self.SCHEMA)
        rows = rows.set_column(2, "verdict", pa.array([KEPT, {**KEPT, "status": "filtered"}], columns.VERDICT))
        assert stages_run(put_through(operator(), rows)) == [None, None]

    def test_stay_where_a_stage_fails(self):
        rows = block("who?", "abba", letters=[self.letters] * 2, echo=[self.echo, None], schema=self.SCHEMA)
        failed, kept = put_through(operator(), rows)
        assert failed["verdict"]["reason"] == "ValueError"
        assert (failed["echo"], kept["echo"]["text"]) == (self.echo, "abba")


def test_no_stage_runs_on_an_untouched_row_whatever_it_lacks():
    measuring = operator(untouched=frozenset("a"))
    rows = put_through(measuring, block("abba", "queen"))
    assert verdicts(rows) == {"a": ("kept", None, None), "b": ("kept", None, None)}
    assert [row["letters"] and row["letters"]["count"] for row in rows] == [None, 5]
    assert stages_run(rows) == [[], ["letters", "echo"]]
    assert measuring.recorder.noted == [("letters", "b"), ("echo", "b")]


def test_a_row_that_has_killed_too_many_workers_fails_in_that_stage_with_what_it_had_before():
    fates = {"a": Fate(3, "echo", "SIGSEGV in echo"), "b": Fate(2)}
    measuring = operator()
    rows = put_through(measuring, block("abba", "queen"), fates)
    assert rows[0]["verdict"] == {
        "status": "failed", "stage": "echo", "reason": "WorkerDied", "message": "SIGSEGV in echo", "attempts": 3,
    }  # fmt: skip
    assert rows[0]["letters"]["count"] == 4
    assert rows[1]["verdict"] == {**KEPT, "attempts": 2}
    assert measuring.recorder.noted == [("letters", "ab"), ("echo", "b")]


def test_what_prepares_a_block_sees_who_is_set_aside_and_may_reject_rows_itself():
    seen: list[str] = []

    def prepare(rows: pa.Table) -> pa.Table:
        found = rows["verdict"].to_pylist()
        seen.extend(verdict["status"] for verdict in found)
        found[1] |= {"status": "failed", "stage": IDENTITY, "reason": "ChangedFile", "message": "other bytes"}
        return rows.set_column(2, "verdict", pa.array(found, columns.VERDICT))

    measuring = operator(prepare=prepare)
    rows = put_through(measuring, block("abba", "queen", "blur"), {"a": Fate(1, IDENTITY, "died")})
    assert seen == ["failed", "kept", "kept"]
    assert verdicts(rows) == {
        "a": ("failed", IDENTITY, "WorkerDied"),
        "b": ("failed", IDENTITY, "ChangedFile"),
        "c": ("kept", None, None),
    }
    assert measuring.recorder.noted == [(IDENTITY, "abc"), ("letters", "c"), ("echo", "c")]
    assert measuring.recorder.passed == {IDENTITY: 3, "letters": 1, "echo": 1}


def test_a_stage_loads_its_models_for_the_first_row_that_needs_them_and_says_if_it_cannot():
    carried = pa.schema([*IN, ("broken", Broken.type)])
    idle = operator(node("broken"), carried=carried, untouched=frozenset("a"))
    assert verdicts(put_through(idle, block("abba"))) == {"a": ("kept", None, None)}
    with pytest.raises(StageCannotStart, match=r"stage 'broken' cannot start: no such library \(raised in setup"):
        operator(node("broken"), carried=carried)(block("abba"), {})


def test_models_are_loaded_once(monkeypatch):
    loaded: list[str] = []
    monkeypatch.setattr(Letters, "setup", lambda stage, _: loaded.append(stage.name))
    measuring = operator(LETTERS)
    for _ in range(2):
        put_through(measuring, block("abba", "queen"))
    assert loaded == ["letters"]


@settings(max_examples=50)
@given(
    titles=st.lists(st.text("ae!?^z", max_size=5), min_size=1, max_size=12),
    batch_rows=st.integers(1, 12),
    gates=st.lists(st.sampled_from([SHORT, Gate("letters", "vowels", "max", 0.5), Gate("echo", "count", "max", 3.0)])),
    spared=st.frozensets(st.sampled_from("abcdefghijkl"), max_size=3),
    untouched=st.frozensets(st.sampled_from("abcdefghijkl"), max_size=3),
    fates=st.dictionaries(
        st.sampled_from("abcdefghijkl"), st.builds(Fate, st.integers(1, 3), st.sampled_from(["", "letters", "echo"]))
    ),
)
def test_what_comes_of_a_row_does_not_depend_on_its_batch(titles, batch_rows, gates, spared, untouched, fates):
    rows = block(*titles)
    judging = {"gates": tuple(gates), "spared": spared, "untouched": untouched}
    together, alone = operator(**judging), operator(**judging)
    together.batch_rows = batch_rows
    report, through = together(rows, fates)
    singles = [alone(rows.slice(i, 1), fates)[1].to_pylist()[0] for i in range(len(titles))]
    through = through.to_pylist()
    assert [_without_timing(row) for row in through] == [_without_timing(row) for row in singles]
    assert [run or [] for run in stages_run(through)] == [run or [] for run in stages_run(singles)]
    assert together.recorder.passed == alone.recorder.passed == report.passed
    assert report.status == Counter(row["verdict"]["status"] for row in through)


def _without_timing(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "timing"}


def test_an_operator_needs_no_ray():
    code = "import sys, pipeline.execution.operator; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
