"""A unit's rows come out once and in order, however the blocks that brought them were cut, mixed and repeated."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curation.sink import UNIT, Gatherer, SinkSpec
from schemas.dataset import Layout

SCHEMA = pa.schema([("row_id", pa.string()), ("sizes", pa.list_(pa.int64())), *UNIT])


class Told(Gatherer[dict]):
    """Writes nothing: says what it would write, and in how many pieces it got it."""

    def write(self, unit: int, rows: pa.Table) -> dict:
        return {"unit": unit, "rows": rows.to_pylist(), "pieces": rows["row_id"].num_chunks}


def rows_of(unit: int, count: int) -> list[dict]:
    at = {"unit": unit, "unit_rows": count, "supersedes": None}
    return [{"row_id": f"{unit}-{place}", "sizes": [place] * place, "place": place, **at} for place in range(count)]


@settings(max_examples=80, deadline=None)
@given(data=st.data(), counts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_unit_is_written_once_and_in_order(data, counts):
    units = [rows_of(unit, count) for unit, count in enumerate(counts)]
    rows = data.draw(st.permutations([row for unit in units for row in unit]))
    again = [data.draw(st.sampled_from(unit)) for unit in units if len(unit) > 1]  # a worker that died, say
    blocks, left = [], [*again, *rows]
    while left:
        size = data.draw(st.integers(1, len(left)))
        blocks.append(pa.Table.from_pylist(left[:size], SCHEMA))
        left = left[size:]
    sink = Told(SinkSpec(Layout.at("nowhere"), "plan", {}))
    told = [unit for block in blocks for unit in sink(block)]
    assert {unit["unit"]: unit["rows"] for unit in told} == dict(enumerate(units))
    assert len(told) == len(units)


def test_a_block_that_is_a_unit_stays_in_one_piece():
    (unit,) = Told(SinkSpec(Layout.at("nowhere"), "plan", {}))(pa.Table.from_pylist(rows_of(3, 50), SCHEMA))
    assert unit["pieces"] == 1
