"""The index of a dataset: all that a list shows, filters or sorts by, in one DuckDB file that lies on disk.

A dataset of a million rows has thousands of shards; to open each for every page would take seconds. The index is made
once from the scalar columns, and is read-only: what a query of the page's user can reach is this file and the dataset's
shards, nothing else on the machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.gates import Gate
from pipeline.ledger import read_records
from pipeline.pages.thresholds import dataset_gates
from schemas import columns
from schemas.dataset import Layout

_LISTS = ("tags.names", "flags")
_LONG = {
    "given_lyrics",
    "transcript.text",
    "lyric_tokens.text",
    "verdict.message",
    "caption.failure",
    *(f"caption.{field.name}" for field in columns.CAPTION if field.name not in ("source", "failure", "model")),
}
_NUMBERS = {
    "double",
    "float",
    "tinyint",
    "smallint",
    "integer",
    "bigint",
    "utinyint",
    "usmallint",
    "uinteger",
    "ubigint",
}
_KINDS = {**dict.fromkeys(_NUMBERS, "number"), "varchar": "text", "boolean": "truth"}
_MEMORY = "2GB"


class Changed(Exception):  # noqa: N818 - what happened, not whose fault it is
    """The dataset is not as it was when the index was made."""


@dataclass(frozen=True)
class Place:
    """Where a row lies.

    Attributes:
        row_id: which row.
        uri: its song.
        file: the shard or quarantine file.
        number: its place in the file.
    """

    row_id: str
    uri: str | None
    file: Path
    number: int


class Index:
    """One state of a dataset.

    Attributes:
        layout: the dataset.
        fields: dotted name of what the table `rows` holds -> `number`, `text`, `truth` or `list`.
        gates: the thresholds that its rows were judged by.
    """

    def __init__(self, layout: Layout, file: Path) -> None:
        """Make the index.

        Args:
            layout: the dataset.
            file: where to; must not be there yet.

        Raises:
            Changed: a shard went away meanwhile.
        """
        self.layout = layout
        self.fields: dict[str, str] = {}
        try:
            files = [layout.root / name for record in read_records(layout) for name in record.files]
            shards = [path for path in files if path.parent in (layout.shards, layout.quarantine)]
            self.gates: tuple[Gate, ...] = dataset_gates(layout)
            with duckdb.connect(file, config={"memory_limit": _MEMORY}) as connection:
                self._make(connection, sorted(shards, key=lambda path: (path.parent != layout.shards, path)))
        except (OSError, duckdb.IOException) as problem:
            raise Changed(str(problem)) from problem
        self._connection = _locked(file, layout)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for one thread: the table `rows` and the view `everything`, whose columns are whole."""
        return self._connection.cursor()

    @cached_property
    def size(self) -> int:
        """Rows of the dataset."""
        return int(self.cursor().execute("select count(*) from rows").fetchall()[0][0])

    def places(self, row_ids: list[str]) -> dict[str, Place]:
        """Where rows lie; those that the dataset does not have are left out."""
        found = (
            self.cursor()
            .execute(
                "select row_id, uri, _file, _row from rows where row_id in (select unnest($ids))", {"ids": row_ids}
            )
            .fetchall()
        )
        return {row_id: Place(row_id, uri, Path(file), number) for row_id, uri, file, number in found}

    def close(self) -> None:
        """Let go of the file once the last cursor has."""
        self._connection.close()

    def _make(self, connection: duckdb.DuckDBPyConnection, shards: list[Path]) -> None:
        if not shards:
            connection.execute(
                "create table rows (row_id varchar, uri varchar, title varchar, _file varchar, _row bigint)"
            )
            connection.execute("create view everything as select row_id, uri, title from rows")
            return
        source = "[" + ", ".join(_quoted(str(path), "'") for path in shards) + "]"
        connection.execute(f"create view everything as select * from read_parquet({source}, union_by_name=true)")
        whole = connection.sql("from everything")
        kept = [
            f"{expression} as {_quoted(name)}"
            for name, type in zip(whole.columns, whole.types, strict=True)
            if (expression := self._slim(name, _quoted(name), type))
        ]
        connection.execute(
            f"create table rows as select {', '.join(kept)}, filename as _file, file_row_number as _row "
            f"from read_parquet({source}, union_by_name=true, filename=true, file_row_number=true)"
        )

    def _slim(self, name: str, value: str, type: Any) -> str | None:
        """A column without its bulk, as SQL; None where nothing is left. A null stays one."""
        if type.id == "struct":
            inner = [
                f"{_quoted(child)} := {slim}"
                for child, of in type.children
                if (slim := self._slim(f"{name}.{child}", f"{value}.{_quoted(child)}", of))
            ]
            return f"case when {value} is not null then struct_pack({', '.join(inner)}) end" if inner else None
        kind = "list" if name in _LISTS else _KINDS.get(type.id)
        if kind is None or name in _LONG or name.endswith(".model"):
            return None
        self.fields[name] = kind
        return value


def read_row(place: Place) -> dict[str, Any]:
    """A row with all its columns.

    Raises:
        Changed: it is not there any more.
    """
    return read_at(place.file, place.number, place.row_id)


def read_at(path: Path, number: int, row_id: str, names: list[str] | None = None) -> dict[str, Any]:
    """A row of a Parquet file by its place.

    Raises:
        Changed: the file is gone, or another row stands there.
    """
    try:
        with pq.ParquetFile(path) as file:
            for group, first in _groups(file):
                if number < first + file.metadata.row_group(group).num_rows:
                    row: dict[str, Any] = file.read_row_group(group, names).slice(number - first, 1).to_pylist()[0]
                    if row["row_id"] == row_id:
                        return row
                    break
    except (OSError, pa.ArrowException, IndexError) as problem:
        raise Changed(str(problem)) from problem
    raise Changed(f"{path} has another row in place {number}")


def _groups(file: pq.ParquetFile) -> Iterator[tuple[int, int]]:
    """Row groups with the number of their first rows."""
    first = 0
    for group in range(file.num_row_groups):
        yield group, first
        first += file.metadata.row_group(group).num_rows


def _locked(file: Path, layout: Layout) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(
        file,
        read_only=True,
        config={"memory_limit": _MEMORY, "temp_directory": "", "python_enable_replacements": False},
    )
    folders = ", ".join(_quoted(str(folder), "'") for folder in (layout.shards, layout.quarantine))
    for setting in (
        f"allowed_directories = [{folders}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"set {setting}")
    return connection


def _quoted(name: str, quote: str = '"') -> str:
    return quote + name.replace(quote, quote * 2) + quote
