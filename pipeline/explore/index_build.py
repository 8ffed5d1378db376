"""Builds and updates an index file: deletes the rows of removed files, and reads those of new files from the shards.

A new index starts empty. An index records which files it contains, by path and digest as in the commit records, and so
matches exactly one state of a dataset.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from schemas import columns
from schemas.dataset import Layout, folder_of, unit_of

REVISION = 1  # raised whenever the same shards give a different index
MEMORY = "2GB"
PLACE_BITS = 32  # low bits of `_n`: a row's position in its file; the bits above are the file's number
_LISTS = ("tags.names", "flags")
_KINDS = {
    "varchar": "text",
    "boolean": "truth",
    "double": "number",
    "float": "number",
    "tinyint": "number",
    "smallint": "number",
    "integer": "number",
    "bigint": "number",
    "utinyint": "number",
    "usmallint": "number",
    "uinteger": "number",
    "ubigint": "number",
}
_LONG = {
    "given_lyrics",
    "transcript.text",
    "lyric_tokens.text",
    "verdict.message",
    "caption.failure",
    *(f"caption.{field.name}" for field in columns.CAPTION if field.name not in ("source", "failure", "model")),
}
_QUARANTINE = 1 << 30  # first number of quarantine files: after those of all shards
_STEPS, _FEWEST = 20, 50  # how often progress is reported, and the least number of files per report

Progress = Callable[[int, int], None]
"""Called with the number of files that have been read, and the total."""


def silent(done: int, total: int) -> None:
    """Report no progress."""


def renew(file: Path, layout: Layout, wanted: Mapping[str, str], progress: Progress) -> bool:
    """Update an index, or build it.

    Args:
        file: an index that no process has open; it may not exist yet.
        layout: the dataset.
        wanted: path inside the dataset -> sha256, of every file whose rows it should contain.
        progress: called at every step.

    Returns:
        False if the dataset's columns have changed: the index then has to be built from scratch.

    Raises:
        duckdb.Error: the index is damaged, or a file of the dataset was removed meanwhile.
    """
    with duckdb.connect(file, config={"memory_limit": MEMORY}) as connection:
        layout.store.let_read(connection)
        connection.execute("set enable_progress_bar = false")
        connection.execute("create table if not exists files (name text, number bigint, sha256 text, shape text)")
        found = connection.execute("select name, sha256, shape from files order by number").fetchall()
        held = {name: shape for name, _, shape in found}
        stays = {name for name, sha256, _ in found if wanted.get(name) == sha256}
        ordered = sorted(wanted, key=_number)
        came = [name for name in ordered if name not in stays]
        shapes = held | _shapes(connection, layout, came)
        examples = _examples({name: shapes[name] for name in ordered})
        if held and [*examples] != [*_examples(held)]:
            return False
        source = _Source(connection, layout, [*examples.values()])
        connection.execute("begin")
        if not held:
            source.create()
        _delete(connection, [name for name in held if name not in stays])
        source.insert(came, progress)
        connection.execute(
            "insert into files select unnest($names), unnest($numbers), unnest($digests), unnest($shapes)",
            {
                "names": came,
                "numbers": [_number(name) for name in came],
                "digests": [wanted[name] for name in came],
                "shapes": [shapes[name] for name in came],
            },
        )
        source.view(ordered)
        connection.execute("commit")
    return True


class _Source:
    """The shards and quarantine files of a dataset, reduced to what an index stores."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, layout: Layout, examples: Sequence[str]) -> None:
        """Read the schemas; `examples` has one file for every distinct set of columns."""
        self._connection, self._layout, self._examples = connection, layout, examples
        whole = connection.sql(f"from {self._parquet(examples)}") if examples else None
        self._slim = [
            f"{slim} as {quoted(name)}"
            for name, type in (zip(whole.columns, whole.types, strict=True) if whole else ())
            if (slim := _slim(name, quoted(name), type))
        ]

    def create(self) -> None:
        """Create the table `rows`, empty."""
        self._connection.execute("drop table if exists rows")
        if self._examples:
            source = self._parquet(self._examples)
            self._connection.execute(
                f"create table rows as select {', '.join(self._slim)}, null::bigint as _n from {source} limit 0"
            )
        else:
            self._connection.execute("create table rows (row_id text, uri text, title text, _n bigint)")

    def insert(self, names: Sequence[str], progress: Progress) -> None:
        """Insert the rows of files into the table."""
        progress(0, len(names))
        step = max(_FEWEST, -(-len(names) // _STEPS))
        for first in range(0, len(names), step):
            batch = names[first : first + step]
            # With the examples, so that columns missing from the batch exist; the join drops the examples' rows.
            source = self._parquet([*self._examples, *batch], "filename=true", "file_row_number=true")
            self._connection.execute(
                f"insert into rows select {', '.join(self._slim)}, number::bigint << {PLACE_BITS} | file_row_number "
                f"from {source} join (select unnest($paths) as filename, unnest($numbers) as number) using (filename)",
                {"paths": [self._path(name) for name in batch], "numbers": [_number(name) for name in batch]},
            )
            progress(first + len(batch), len(names))

    def view(self, names: Sequence[str]) -> None:
        """Create the view `everything` over files, with complete columns."""
        source = self._parquet(names) if names else "rows"
        self._connection.execute(f"create or replace view everything as select * from {source}")

    def _parquet(self, names: Sequence[str], *options: str) -> str:
        files = ", ".join(quoted(self._path(name), "'") for name in dict.fromkeys(names))
        union = len(self._examples) > 1  # otherwise all files have the columns of the first, and no other is opened
        return f"read_parquet([{files}], {', '.join([f'union_by_name={union}', *options])})"

    def _path(self, name: str) -> str:
        return self._layout.store.address(name)


def _slim(name: str, value: str, type: Any) -> str | None:
    """A column without bulky fields, as SQL; None if nothing is left. A struct is null if all `_telling` fields are."""
    if type.id == "struct":
        inner = [
            f"{quoted(child)} := {slim}"
            for child, of in type.children
            if (slim := _slim(f"{name}.{child}", f"{value}.{quoted(child)}", of))
        ]
        there = " or ".join(f"{field} is not null" for field in _telling(name, value, type))
        return f"case when {there} then struct_pack({', '.join(inner)}) end" if inner else None
    kind = kind_of(name, type)
    if kind == "list":  # without duplicates, which makes counting eight times as fast
        return f"case when list_unique({value}) < len({value}) then list_distinct({value}) else {value} end"
    return value if kind else None


def _telling(name: str, value: str, type: Any) -> Iterator[str]:
    """Fields that show whether a struct is null: testing the struct itself would read all of it, a whole transcript."""
    for child, of in type.children if type.id == "struct" else ():
        yield from _telling(f"{name}.{child}", f"{value}.{quoted(child)}", of)
    if kind_of(name, type) or name.endswith(".model"):
        yield value


def kind_of(name: str, type: Any) -> str | None:
    """The kind of a field: `number`, `text`, `truth` or `list`; None if an index does not contain it."""
    if name in _LONG or name.endswith(".model"):
        return None
    return "list" if name in _LISTS else _KINDS.get(type.id)


def _delete(connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> None:
    numbers = {"numbers": [_number(name) for name in names]}
    connection.execute(f"delete from rows where _n >> {PLACE_BITS} in (select unnest($numbers))", numbers)
    connection.execute("delete from files where number in (select unnest($numbers))", numbers)


def _shapes(connection: duckdb.DuckDBPyConnection, layout: Layout, names: Sequence[str]) -> dict[str, str]:
    """File -> digest of its columns' names and types."""
    if not names:
        return {}
    files = ", ".join(quoted(layout.store.address(name), "'") for name in names)
    found = connection.execute(
        "select file_name, md5(string_agg(concat_ws(' ', name, num_children, duckdb_type), ',' order by column_id)) "
        f"from parquet_schema([{files}]) group by 1"
    ).fetchall()
    by_address = dict(found)
    return {name: by_address[layout.store.address(name)] for name in names}


def _examples(shapes: Mapping[str, str]) -> dict[str, str]:
    """Digest of columns -> the first file that has them."""
    examples: dict[str, str] = {}
    for name, shape in shapes.items():
        examples.setdefault(shape, name)
    return examples


def _number(name: str) -> int:
    """The number of a file of the dataset: shards first, then quarantine files, each by unit."""
    return (unit_of(name) or 0) + (_QUARANTINE if folder_of(name) == Layout.quarantine else 0)


def quoted(name: str, quote: str = '"') -> str:
    """A quoted SQL identifier, or with the quote `'` a string."""
    return quote + name.replace(quote, quote * 2) + quote
