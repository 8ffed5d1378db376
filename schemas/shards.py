"""Which shards a dataset has."""

from collections.abc import Mapping

from schemas.dataset import Layout, folder_of


def shards_of(layout: Layout, committed: Mapping[str, str]) -> list[str]:
    """Names of the shards, sorted: those that count, or all there are where a dataset comes without records.

    Args:
        layout: the dataset.
        committed: its `schemas.commits.committed_files`.
    """
    if committed:  # a file without a record does not count
        return sorted(name for name in committed if folder_of(name) == layout.shards)
    return [name for name in layout.store.names(layout.shards) if name.endswith(".parquet")]
