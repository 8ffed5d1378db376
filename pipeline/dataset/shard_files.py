"""How every Parquet file of a dataset is written: compressed, checksummed, in row groups that suit its readers."""

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

# Training reads a whole group for a song; with groups of 64 every count of a million rows takes twice as long.
_ROW_GROUP = 256


_SCAN_ROW_GROUP = 4096  # of the scan, whole columns are read


FEATURE_ROW_GROUP = 4  # training reads songs one by one, and a whole group for each


def write_rows(rows: pa.Table, path: Path, footer: Mapping[bytes, bytes], row_group: int = _ROW_GROUP) -> None:
    """Write rows as every file of a dataset is written, `footer` in its metadata."""
    schema = rows.schema.with_metadata({**(rows.schema.metadata or {}), **footer})
    with naming(path):
        pq.write_table(rows.cast(schema), path, compression="zstd", row_group_size=row_group, write_page_checksum=True)


def write_scan_part(rows: pa.Table, path: Path, footer: Mapping[bytes, bytes]) -> None:
    """Write a part of the scan table; what its stages took stands in its footer too."""
    timings = {stage: time.model_dump() for stage, time in row_times(rows).items()}
    write_rows(rows, path, {**footer, FOOTER_TIMINGS: json.dumps(timings).encode()}, _SCAN_ROW_GROUP)
