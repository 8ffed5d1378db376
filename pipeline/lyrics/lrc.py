"""Enhanced LRC files of a dataset's lyrics: line and word times for any player, so that matches can be checked."""

from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import DataProblem
from schemas.commits import committed_files
from schemas.dataset import Layout
from schemas.files import naming
from schemas.shards import shards_of
from schemas.storage.parquet import read_parquet, schema_of
from stages.matching.alignment import tight

_COLUMNS = ("row_id", "uri", "title", "artist", "album", "language", "audio", "lyrics")


def export_lrc(layout: Layout, out: Path, verdicts: Collection[str]) -> Iterator[Path]:
    """Write a file NAME.lrc for every kept song with lyrics, named after the song, and yield the files.

    Songs with the same name get their row's id appended. Existing files are overwritten.

    Args:
        layout: a curated dataset.
        out: the folder to write into.
        verdicts: which lines are written, by verdict (see `stages.matching.line_report`).

    Raises:
        DataProblem: the dataset has no lyrics.
    """
    shards = shards_of(layout, committed_files(layout))
    if not shards or "lyrics" not in schema_of(layout.store, shards[0]).names:
        raise DataProblem(f"{layout.url} is not a dataset with the column lyrics")
    out.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for shard in shards:
        there = [name for name in _COLUMNS if name in schema_of(layout.store, shard).names]
        for row in read_parquet(layout.store, shard, there).to_pylist():
            text = lrc(row, verdicts)
            if text is None:
                continue
            stem = PurePosixPath(row["uri"]).stem or row["row_id"]
            name = f"{stem}.{row['row_id'][:12]}" if stem in names else stem
            names.add(name)
            file = out / f"{name}.lrc"
            with naming(file):
                file.write_text(text, encoding="utf-8")
            yield file


def lrc(row: Mapping[str, Any], verdicts: Collection[str]) -> str | None:
    """A row's lyrics as enhanced LRC; None if no line with one of these verdicts has a time."""
    lines = [
        line
        for line in (row.get("lyrics") or {}).get("lines") or ()
        if line["verdict"] in verdicts and line["start_s"] is not None
    ]
    if not lines:
        return None
    tags = {"ti": row.get("title"), "ar": row.get("artist"), "al": row.get("album"), "la": row.get("language")}
    if duration_s := (row.get("audio") or {}).get("duration_s"):
        tags["length"] = _time(duration_s)
    heads = [f"[{tag}:{' '.join(str(value).split())}]" for tag, value in tags.items() if value]
    return "\n".join([*heads, "[re:songmill]", "", *map(_line, lines), ""])


def _line(line: Mapping[str, Any]) -> str:
    start = f"[{_time(line['start_s'])}]"
    words = line["words"]
    if not words:
        return start + " ".join(line["text"].split())
    timed = "".join(
        f"<{_time(word['start_s'])}>{word['text']}{'' if tight(word['text'], after['text']) else ' '}"
        for word, after in pairwise([*words, {"text": ""}])
    )
    return f"{start}{timed}<{_time(words[-1]['end_s'])}>"


def _time(seconds: float) -> str:
    hundredths = round(seconds * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"
