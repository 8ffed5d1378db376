"""Cleaned lyric lines of a library or a curated dataset, for training a vocabulary."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.errors import DataProblem
from schemas.commits import committed_files
from schemas.dataset import Layout
from schemas.shards import shards_of
from schemas.storage.parquet import read_parquet, schema_of
from stages.matching.library import check_columns
from stages.text.cleaning import clean
from stages.text.language import line_languages
from stages.text.lyric_text import parse

_ROWS = 1000


def lyric_lines(source: str) -> Iterator[str]:
    """Lines in the form that the vocabulary encodes, without language tags.

    Args:
        source: a Parquet lyric library, or a dataset whose rows have lyric tokens.

    Raises:
        DataProblem: the dataset has no lyric tokens.
        stages.matching.library.LibraryError: the file is not a lyric library.
    """
    if "://" not in source and Path(source).is_file():
        check_columns(Path(source))
        return _library_lines(Path(source))
    layout = Layout.at(source)
    shards = shards_of(layout, committed_files(layout))
    if not shards or "lyric_tokens" not in schema_of(layout.store, shards[0]).names:
        raise DataProblem(f"{source} is neither a lyric library nor a dataset with the column lyric_tokens")
    return _dataset_lines(layout, shards)


def _library_lines(library: Path) -> Iterator[str]:
    for batch in pq.ParquetFile(library).iter_batches(_ROWS, columns=["text", "language"]):
        for row in batch.to_pylist():
            lines = [line.text for line in parse(row["text"] or "")]
            for line, language in zip(lines, line_languages(lines, row["language"]), strict=True):
                yield clean(line, language, compat=False)


def _dataset_lines(layout: Layout, shards: list[str]) -> Iterator[str]:
    for shard in shards:
        for row in read_parquet(layout.store, shard, ["lyric_tokens"])["lyric_tokens"].to_pylist():
            for line in (row or {}).get("text", "").splitlines() if row else ():
                yield line.split("]", 1)[-1]  # the line's language tag
