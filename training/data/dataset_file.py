"""Reads Parquet files of a dataset for training, wherever it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.storage.parquet import open_parquet
from schemas.storage.store import Store
from training.data.errors import CorruptShard


@dataclass(frozen=True)
class DatasetFile:
    """A Parquet file by its name; as text, its whole path or URL.

    Attributes:
        store: of the dataset.
        name: of the file, relative to the dataset.
    """

    store: Store
    name: str

    def __str__(self) -> str:
        return f"{self.store.url}/{self.name}"

    @property
    def address(self) -> str:
        """What DuckDB is to call it."""
        return self.store.address(self.name)

    def footer(self) -> pq.FileMetaData:
        """Its footer, for `opened`.

        Raises:
            CorruptShard: it cannot be read.
        """
        try:
            with open_parquet(self.store, self.name) as file:
                return file.metadata
        except (OSError, pa.ArrowException) as problem:
            raise self._corrupt(problem) from problem

    def schema(self) -> pa.Schema:
        """Its Arrow schema, with the footer's keys.

        Raises:
            CorruptShard: it cannot be read.
        """
        return self.footer().schema.to_arrow_schema()

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Some columns of all rows; fields of structs by their dotted paths.

        Raises:
            CorruptShard: it cannot be read.
        """
        try:
            with open_parquet(self.store, self.name) as file:
                return file.read(columns=list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as problem:
            raise self._corrupt(problem) from problem

    def opened(self, footer: pq.FileMetaData) -> pq.ParquetFile:
        """The file, for `read_group`; its footer is known.

        Raises:
            CorruptShard: it cannot be opened.
        """
        try:
            return open_parquet(self.store, self.name, footer)
        except (OSError, pa.ArrowException) as problem:
            raise self._corrupt(problem) from problem

    def read_group(self, opened: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of one row group.

        Raises:
            CorruptShard: it cannot be read.
        """
        try:
            return opened.read_row_group(group, columns=list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as problem:
            raise self._corrupt(problem) from problem

    def _corrupt(self, problem: BaseException) -> CorruptShard:
        return CorruptShard(str(self), str(problem).partition("\n")[0].rstrip("."))
