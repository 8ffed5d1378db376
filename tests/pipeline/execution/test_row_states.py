"""Verdicts and timings on their way from Arrow to Python and back."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.fate import Fate
from pipeline.execution.row_states import RowStates
from schemas import columns

TEXT = st.none() | st.text(max_size=5)
VERDICTS = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["kept", "filtered", "failed", "pending"]),
        "stage": TEXT,
        "reason": TEXT,
        "message": TEXT,
        "attempts": st.none() | st.integers(0, 9),
    }
)
TIMINGS = st.none() | st.lists(st.fixed_dictionaries({"stage": TEXT, "seconds": st.floats(allow_nan=False)}))


def table(verdicts: list[dict], timings: list | None = None) -> pa.Table:
    """Rows a, b, c and so on; without a column of timings if there are none."""
    rows = pa.table({"row_id": [chr(97 + i) for i in range(len(verdicts))], "x": range(len(verdicts))})
    rows = rows.append_column("verdict", pa.array(verdicts, columns.VERDICT))
    return rows if timings is None else rows.append_column("timing", pa.array(timings, columns.TIMING))


@given(states=st.lists(st.tuples(VERDICTS, TIMINGS), min_size=1, max_size=6), with_timings=st.booleans())
def test_encoding_what_was_decoded_gives_the_same_table(states, with_timings):
    rows = table([verdict for verdict, _ in states], [timing for _, timing in states] if with_timings else None)
    assert RowStates.decode(rows).encode(rows).equals(rows)


def test_a_batch_without_timings_has_some_once_something_was_measured():
    kept = {"status": "kept", "stage": None, "reason": None, "message": None, "attempts": 1}
    rows = table([kept, kept])
    states = RowStates.decode(rows)
    assert states.encode(rows).column_names == ["row_id", "x", "verdict"]
    states.add_timing([1], "key", 0.5)
    assert states.encode(rows)["timing"].to_pylist() == [[], [{"stage": "key", "seconds": 0.5}]]


def test_timings_are_added_to_those_that_a_row_has_or_lacks():
    kept = {"status": "kept"}
    states = RowStates.decode(table([kept, kept, kept], [[{"stage": "key", "seconds": 1.0}], None, None]))
    states.add_timing([0, 1], "tags", 0.5)
    tags = {"stage": "tags", "seconds": 0.5}
    assert states.timings == [[{"stage": "key", "seconds": 1.0}, tags], [tags], None]


def test_only_kept_rows_are_begun_or_set_aside():
    verdicts = [{"status": status, "attempts": 7} for status in ("kept", "kept", "filtered", "kept")]
    states = RowStates.decode(table(verdicts))
    fates = {"a": Fate(2), "b": Fate(3, "key", "died"), "c": Fate(4, "key", "died")}
    states.count_attempt(fates)
    states.set_aside("tags", fates)
    assert states.kept == [0, 1, 3]
    states.set_aside("key", fates)
    assert states.kept == [0, 3]
    assert [verdict["attempts"] for verdict in states.verdicts] == [2, 3, 7, 1]
    assert states.verdicts[1] == {
        "status": "failed", "stage": "key", "reason": "WorkerDied", "message": "died", "attempts": 3,
    }  # fmt: skip
