"""The index of a dataset: everything that the list shows, filters or sorts by, in one DuckDB file on disk.

A dataset of a million rows has thousands of shards; opening all of them for every page would take seconds. The index
has the scalar columns, and is opened read-only: a user's query can access this file and the dataset's shards, but
nothing else on the machine.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.explore.index_build import MEMORY, PLACE_BITS, kind_of, quoted
from pipeline.pages.thresholds import dataset_gates
from pipeline.planning.gates import Gate
from schemas.dataset import Layout
from schemas.storage.parquet import open_parquet
from schemas.storage.store import Store


class Changed(Exception):  # noqa: N818 - what happened, not whose fault it is
    """The dataset has changed since the index was built."""


@dataclass(frozen=True)
class Place:
    """Where a row is stored.

    Attributes:
        row_id: id of the row.
        uri: uri of its song.
        file: name of the shard or quarantine file.
        number: its position in the file.
    """

    row_id: str
    uri: str | None
    file: str
    number: int


class Index:
    """One state of a dataset.

    Attributes:
        layout: the dataset.
        file: file of the index; another process may have removed it since.
        fields: dotted name of every field in the table `rows` -> `number`, `text`, `truth` or `list`.
        gates: the thresholds that its rows were judged by.
    """

    def __init__(self, layout: Layout, file: Path) -> None:
        """Open an index.

        Args:
            layout: the dataset.
            file: written by `pipeline.explore.index_build.renew`; other processes may have it open too, and remove it.

        Raises:
            duckdb.Error: it is damaged.
            OSError: the dataset has changed.
        """
        self.layout, self.file = layout, file
        self._connection = _locked(file, layout)
        rows = self._connection.sql("from rows")
        self.fields = dict(_fields(zip(rows.columns, rows.types, strict=True)))
        files = self._connection.execute("select name from files order by number limit 1").fetchall()
        self.gates: tuple[Gate, ...] = dataset_gates(layout, [name for (name,) in files])

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for one thread: the table `rows`, and the view `everything` with complete columns."""
        return self._connection.cursor()

    @cached_property
    def size(self) -> int:
        """Number of rows in the dataset."""
        return int(self.cursor().execute("select count(*) from rows").fetchall()[0][0])

    def places(self, row_ids: list[str]) -> dict[str, Place]:
        """Row id -> its place; ids that the dataset does not have are left out."""
        found = (
            self.cursor()
            .execute(
                f"select row_id, uri, name, _n & {(1 << PLACE_BITS) - 1} "
                f"from (from rows where row_id in (select unnest($ids))) join files on number = _n >> {PLACE_BITS}",
                {"ids": row_ids},
            )
            .fetchall()
        )
        return {row_id: Place(row_id, uri, name, number) for row_id, uri, name, number in found}

    def close(self) -> None:
        """Close the file once the last cursor is closed."""
        self._connection.close()


def read_row(
    store: Store, place: Place, columns: list[str] | None = None, *, file: str | None = None
) -> dict[str, Any]:
    """A row.

    Args:
        store: the dataset's.
        place: where the row is.
        columns: to read; by default all.
        file: another file, whose rows are those of the shard.

    Raises:
        Changed: it is no longer there.
    """
    name = file or place.file
    try:
        with open_parquet(store, name) as opened:
            for group, first in _groups(opened):
                if place.number < first + opened.metadata.row_group(group).num_rows:
                    here = opened.read_row_group(group, columns).slice(place.number - first, 1)
                    row: dict[str, Any] = here.to_pylist()[0]
                    if row["row_id"] == place.row_id:
                        return row
                    break
    except (OSError, pa.ArrowException, IndexError) as problem:
        raise Changed(str(problem)) from problem
    raise Changed(f"{store.url}/{name} has another row at position {place.number}")


def is_unreadable(problem: duckdb.Error) -> bool:
    """Whether a file could not be read; DuckDB has no class of its own for what reading from a bucket raises."""
    return isinstance(problem, duckdb.IOException) or type(problem) is duckdb.Error


def _groups(file: pq.ParquetFile) -> Iterator[tuple[int, int]]:
    """Row groups, each with the position of its first row."""
    first = 0
    for group in range(file.num_row_groups):
        yield group, first
        first += file.metadata.row_group(group).num_rows


def _fields(children: Iterable[tuple[str, Any]], above: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of a table's fields, with their kinds; `_n` is internal."""
    for name, type in children:
        if type.id == "struct":
            yield from _fields(type.children, f"{above}{name}.")
        elif name != "_n" and (kind := kind_of(above + name, type)):
            yield above + name, kind


def _locked(file: Path, layout: Layout) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(
        file,
        read_only=True,
        config={"memory_limit": MEMORY, "temp_directory": "", "python_enable_replacements": False},
    )
    if connection.execute("select current_setting('lock_configuration')").fetchall() == [(True,)]:
        return connection  # this process has the file open already
    layout.store.let_read(connection)
    folders = ", ".join(quoted(layout.store.address(folder), "'") for folder in (layout.shards, layout.quarantine))
    for setting in (
        "parquet_metadata_cache = true",  # otherwise every condition on shards reads all footers three times
        f"allowed_directories = [{folders}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"set {setting}")
    return connection
