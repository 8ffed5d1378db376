"""Columns of old units, found again for rows of new ones."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.curation.reuse import StoredColumns
from pipeline.dataset.shard_files import write_rows
from pipeline.planning.dag import Dag, Node
from schemas import columns
from schemas.dataset import FOOTER_FINGERPRINTS, Layout
from stages.base import Params
from tests.support.toy_stages import Echo, Killer, Letters

# `letters` rests on the title, `echo` on what `letters` hands on, `killer` on the title as well.
MADE = {"letters": Letters.type, "echo": Echo.type, "killer": Killer.type}
DAG = Dag(
    tuple(Node(name, f"tests.support.toy_stages:{name.title()}", Params(), {}, f"{name}@1") for name in MADE), gates=()
)
UNITS = {0: ["shard-0", "echo-0", "quarantine-0"], 1: ["shard-1"]}


def identity(number: int, **changed: str) -> dict[str, Any]:
    texts = {name: f"{name} {number}" for name in columns.IDENTITY.names}
    return {**texts, "row_id": str(number), "language": None, **changed}


def stored(number: int) -> dict[str, Any]:
    """What an earlier run has made of a song."""
    letters = {"count": number, "vowels": None if number % 2 else 0.5, "model": "old"}
    echo = {"text": f"echo {number}", "count": number, "model": "old"} if number % 3 else None
    return {"letters": letters, "echo": echo, "killer": {"survived": True, "model": "old"}}


def write(path: Path, numbers: Sequence[int], names: Sequence[str], made_with: Mapping[str, str]) -> None:
    """A file of a unit, in row groups of two."""
    whole = not path.name.startswith("echo")
    rows = [{**(identity(n) if whole else {"row_id": str(n)}), **{k: stored(n)[k] for k in names}} for n in numbers]
    schema = pa.schema(
        [*(columns.IDENTITY if whole else [("row_id", pa.string())]), *((name, MADE[name]) for name in names)]
    )
    write_rows(pa.Table.from_pylist(rows, schema), path, {FOOTER_FINGERPRINTS: json.dumps(made_with).encode()}, 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset: unit 0 has kept songs 0 to 6 and rejected ones 7 and 8, unit 1 songs 10 to 13 by another `letters`."""
    folder, now = tmp_path_factory.mktemp("dataset"), DAG.fingerprints
    write(folder / "shard-0", range(7), ["letters", "killer"], now)
    write(folder / "echo-0", range(7), ["echo"], now)
    write(folder / "quarantine-0", [7, 8], ["letters"], now)
    write(folder / "shard-1", range(10, 14), ["letters", "echo", "killer"], now | {"letters": "letters@0", "echo": ""})
    return folder


def expected(unit: int | None, number: int, changed: Mapping[str, str]) -> dict[str, Any]:
    """What a row is to have, in plain words."""
    nothing = dict.fromkeys(MADE)
    there = {0: range(9), 1: range(10, 14), None: ()}[unit]
    if number not in there or "track_id" in changed or "title" in changed:
        return nothing
    names = ["killer"] if unit == 1 else ["letters"] if number > 6 else [*MADE]
    return {**nothing, **{name: stored(number)[name] for name in names}}


def rows_of(asked: Sequence[tuple[int | None, int, Mapping[str, str]]]) -> pa.Table:
    schema = pa.schema([("supersedes", pa.int64()), *columns.IDENTITY, *MADE.items()])
    return pa.Table.from_pylist(
        [{"supersedes": unit, **identity(number, **changed)} for unit, number, changed in asked], schema
    )


@settings(max_examples=50)
@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from([None, 0, 1]),
            st.integers(0, 14),
            st.sampled_from(
                [{}, {}, {"album": "other"}, {"language": "en"}, {"title": "other"}, {"track_id": "other"}]
            ),
        ),
        min_size=1,
        max_size=12,
    ),
    in_pieces=st.booleans(),
)
@example(asked=[(0, number, {}) for number in range(9)], in_pieces=False)
@example(asked=[(0, number, {}) for number in range(8, -1, -1)], in_pieces=False)
def test_every_row_gets_what_its_old_unit_has_of_it_in_any_order(root, asked, in_pieces):
    reuse, rows = StoredColumns(Layout.at(root), UNITS, DAG), rows_of(asked)
    filled = pa.concat_tables(map(reuse, _singles(rows))) if in_pieces else reuse(rows)
    assert filled.schema.equals(rows.schema)
    found = filled.select([*MADE]).to_pylist()
    assert found == [expected(*row) for row in asked]


def _singles(rows: pa.Table) -> Iterator[pa.Table]:
    return (rows.slice(i, 1) for i in range(rows.num_rows))


def test_of_a_file_no_more_than_a_row_group_is_held(root):
    reuse = StoredColumns(Layout.at(root), UNITS, DAG)
    for number in range(7):
        reuse(rows_of([(0, number, {})]))
        assert [file._last[1].num_rows for file in reuse._read[1] if file._last] == [1 if number == 6 else 2] * 2


def test_one_value_can_be_looked_at(root):
    valid = StoredColumns(Layout.at(root), UNITS, DAG).valid_columns(0, "5", identity(5))
    assert {name: file.value("5", name) for name, file in valid.items()} == stored(5)


def test_a_column_of_an_earlier_release_gets_the_type_of_today(tmp_path):
    then = pa.struct([("model", pa.string()), ("count", pa.int64()), ("gone", pa.string())])
    letters = [{"model": "old", "count": 3, "gone": "x"}, None]
    table = pa.Table.from_pylist([identity(0), identity(1)], columns.IDENTITY)
    footer = {FOOTER_FINGERPRINTS: json.dumps(DAG.fingerprints).encode()}
    write_rows(table.append_column("letters", pa.array(letters, then)), tmp_path / "shard", footer)
    filled = StoredColumns(Layout.at(tmp_path), {0: ["shard"]}, DAG)(rows_of([(0, 0, {}), (0, 1, {})]))
    assert filled["letters"].type == Letters.type
    assert filled["letters"].to_pylist() == [{"count": 3, "vowels": None, "model": "old"}, None]
