"""Size on disk of each column of a dataset's shards, from the Parquet footers."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq


def column_bytes(shards: Iterable[Path]) -> dict[str, int]:
    """Compressed bytes of all column chunks, by top-level column, the largest first."""
    sizes: Counter[str] = Counter()
    for shard in shards:
        footer = pq.read_metadata(shard)
        for group in range(footer.num_row_groups):
            for number in range(footer.num_columns):
                chunk = footer.row_group(group).column(number)
                sizes[chunk.path_in_schema.split(".")[0]] += chunk.total_compressed_size
    return dict(sizes.most_common())
