"""Write the Parquet files of a dataset: compressed, with page checksums, and row groups sized for their readers."""

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.stage_times import row_times
from schemas.dataset import (
    FOOTER_TIMINGS,
)
from schemas.files import naming

# Training reads a whole row group per song; but groups of 64 make counting a million rows twice as slow.
_ROW_GROUP = 256


_SCAN_ROW_GROUP = 4096  # the scan table is read column by column


FEATURE_ROW_GROUP = 4  # training reads single songs, each with its whole row group


def write_rows(rows: pa.Table, path: Path, footer: Mapping[bytes, bytes], row_group: int = _ROW_GROUP) -> None:
    """Write a Parquet file of the dataset with `footer` in its metadata and at most `row_group` rows per row group.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    schema = rows.schema.with_metadata({**(rows.schema.metadata or {}), **footer})
    with naming(path):
        pq.write_table(rows.cast(schema), path, compression="zstd", row_group_size=row_group, write_page_checksum=True)


def in_memory(rows: pa.Table) -> bytes:
    """A small Parquet file, for stores that take bytes."""
    content = pa.BufferOutputStream()
    pq.write_table(rows, content)
    return content.getvalue().to_pybytes()  # type: ignore[no-any-return]


def write_scan_part(rows: pa.Table, path: Path, footer: Mapping[bytes, bytes]) -> None:
    """Write a part of the scan table, with the stages' total times in its footer."""
    timings = {stage: time.model_dump() for stage, time in row_times(rows).items()}
    write_rows(rows, path, {**footer, FOOTER_TIMINGS: json.dumps(timings).encode()}, _SCAN_ROW_GROUP)
