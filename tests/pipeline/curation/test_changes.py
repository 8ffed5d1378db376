"""What a run did to its rows, counted: each row once, whatever passes and units bring it."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.curation.changes import Changes
from schemas.commits import Commit, RowState

ROWS = [f"row-{number}" for number in range(8)]
STATES = st.builds(RowState, st.sampled_from(["kept", "failed"]), st.none(), st.sampled_from(["a", "b"]))
UNITS = st.tuples(
    st.dictionaries(st.sampled_from(ROWS), STATES),
    st.dictionaries(st.sampled_from(ROWS), STATES),
    st.sets(st.sampled_from(ROWS)),
)


def unit(rows: dict[str, RowState]) -> Commit:
    return Commit(unit=0, plan="toy", files={}, timings={}, rows=rows)


@given(scanned=st.lists(st.sampled_from(ROWS)), units=st.lists(UNITS))
def test_a_row_is_worked_on_or_else_updated_or_else_unchanged(scanned: list[str], units: list[tuple]):
    changes = Changes()
    changes.scanned(pa.table({"row_id": pa.array(scanned, pa.string())}))
    worked_on, updated = set(scanned), set()
    for before, after, measured in units:
        measured = measured & after.keys()
        changes.committed(unit(after), unit(before) if before else None, measured)
        worked_on |= measured | (after.keys() - before.keys())
        updated |= {row_id for row_id in after.keys() & before.keys() if after[row_id] != before[row_id]}
    assert changes.worked_on == len(worked_on)
    assert changes.updated == len(updated - worked_on)
