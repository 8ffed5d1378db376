"""Read Parquet files of a dataset, wherever it is kept."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.storage.store import Store


def open_parquet(store: Store, name: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A Parquet file, to be read a row group or a few columns at a time. Close it.

    Args:
        store: the dataset's.
        name: of the file.
        metadata: its footer, if it is known; it is then not read again.

    Raises:
        FileNotFoundError: there is no such file.
        ArrowInvalid: it is not Parquet.
    """
    return pq.ParquetFile(
        name, metadata=metadata, filesystem=store.filesystem, pre_buffer=True, page_checksum_verification=True
    )


def read_parquet(store: Store, name: str, columns: Sequence[str] | None = None, **options: Any) -> pa.Table:
    """A whole Parquet file, or some of its columns; fields of structs by their dotted paths.

    Args:
        store: the dataset's.
        name: of the file.
        columns: to read; default: all.
        **options: of `pyarrow.parquet.ParquetFile.read`.
    """
    with open_parquet(store, name) as file:
        return file.read(columns=None if columns is None else list(columns), **options)


def schema_of(store: Store, name: str) -> pa.Schema:
    """The columns of a Parquet file, with the keys of its footer.

    Args:
        store: the dataset's.
        name: of the file.
    """
    with open_parquet(store, name) as file:
        return file.schema_arrow
