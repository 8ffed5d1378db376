"""One threshold, asked in three ways: of a value, of a column, of DuckDB."""

import math

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.planning.gates import (
    Gate,
    GateError,
    build_gates,
    first_rejecting,
    first_rejecting_sql,
    in_judging_order,
)
from schemas import columns

FIELDS = {"single": pa.float32(), "double": pa.float64(), "whole": pa.int32()}
TYPE = pa.struct(list(FIELDS.items()))
# Tenths differ as float32 and float64; every column has them all, and most bounds are one of them.
FIGURES = [0.1, 0.3, 0.7, -0.1, 0.0, 1.0, math.nan, math.inf, -math.inf, None]
EDGES = [
    *({"single": figure, "double": figure, "whole": whole} for whole, figure in enumerate(FIGURES, -1)),
    {"single": 0.5, "double": 0.5, "whole": None},
    None,
]
VALUES = st.lists(
    st.fixed_dictionaries(
        {"single": st.floats(width=32), "double": st.floats(), "whole": st.integers(-(2**31), 2**31 - 1)}
    ),
    max_size=5,
).map(lambda drawn: [*EDGES, *drawn])
BOUNDS = st.sampled_from([0.1, 0.3, 0.7, -0.1, 0.0, 1.0]) | st.floats(allow_nan=False, allow_infinity=False)
GATES = st.builds(Gate, st.just("x"), st.sampled_from([*FIELDS]), st.sampled_from(["min", "max"]), BOUNDS)


def arrow(values: list, pieces: int = 1) -> pa.ChunkedArray:
    """The values as Arrow holds them, in pieces."""
    size = -(-len(values) // pieces) or 1
    return pa.chunked_array([pa.array(values[i : i + size], TYPE) for i in range(0, len(values), size)], TYPE)


@given(gate=GATES, values=VALUES, pieces=st.integers(1, 3))
def test_a_gate_says_of_a_value_and_of_a_column_what_a_direct_comparison_says(gate, values, pieces):
    column = arrow(values, pieces)
    stored = column.to_pylist()  # a float32 is another number than the one that was put in
    figures = [None if value is None else value[gate.field] for value in stored]
    if gate.side == "min":
        expected = [figure is not None and figure < gate.bound for figure in figures]
    else:
        expected = [figure is not None and figure > gate.bound for figure in figures]
    assert [gate.rejects(value) for value in stored] == expected
    assert gate.rejected(column).tolist() == expected
    assert gate.rejected(column.slice(1)).tolist() == expected[1:]


@settings(max_examples=25)
@given(gates=st.lists(GATES, max_size=3), values=VALUES)
def test_duckdb_finds_the_same_gate_first(gates, values):
    column = arrow(values)
    with duckdb.connect() as connection:
        connection.register("rows", pa.table({"i": range(len(values)), "x": column}))
        found = connection.execute(f"select {first_rejecting_sql(gates)} from rows order by i").fetchall()
    first = [first_rejecting(gates, {"x": value}) for value in column.to_pylist()]
    assert [name for (name,) in found] == [gate and f"{gate.column}.{gate.reason}" for gate in first]


def test_a_verdict_names_the_figure_and_the_threshold():
    gate = Gate("quality", "bandwidth_hz", "min", 15_000.0)
    message = "quality.bandwidth_hz 12345.7 is below min_bandwidth_hz 15000"
    value = {"bandwidth_hz": 12_345.678, "loudness_lufs": -14.0}
    assert gate.verdict(value) == {
        "status": "filtered", "stage": "quality", "reason": "min_bandwidth_hz", "message": message,
    }  # fmt: skip
    gate = Gate("audio", "duration_s", "max", 1200.0)
    assert gate.message({"duration_s": 1201}) == "audio.duration_s 1201 is above max_duration_s 1200"


def test_gates_are_built_as_configured_without_those_on_columns_that_nobody_makes():
    config = {
        "key": {"min_strength": 0.5},
        "rhythm": {"max_bpm": 200},
        "audio": {"min_duration_s": 5, "max_channels": 2},
    }
    types = {"audio": columns.AUDIO, "key": columns.KEY}
    gates = build_gates(config, types)
    assert gates == (
        Gate("key", "strength", "min", 0.5),
        Gate("audio", "duration_s", "min", 5.0),
        Gate("audio", "channels", "max", 2.0),
    )
    assert in_judging_order(gates, types) == (*gates[1:], gates[0])


@pytest.mark.parametrize("name", ["strength", "least_strength", "min_tonic", "min_", "min_nothing"])
def test_a_threshold_that_does_not_fit_its_column_is_refused_with_those_that_would(name):
    with pytest.raises(
        GateError, match=f"gates.key.{name}: no such threshold; use min_ or max_ before one of strength"
    ):
        build_gates({"key": {name: 1.0}}, {"key": columns.KEY})
    with pytest.raises(GateError, match="before one of none"):
        build_gates({"flags": {name: 1.0}}, {"flags": columns.FLAGS})
