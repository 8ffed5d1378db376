"""Enhanced LRC of the lyrics that a dataset holds, read back by our own parser."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.lyrics.lrc import lrc
from schemas import columns
from schemas.lyric_verdicts import SUNG
from stages.text.lyric_text import parse
from tests.support.command import asked


def line(text: str, start_s: float | None, verdict: str = "canonical") -> dict:
    words = [
        {"start_s": start_s + i, "end_s": start_s + i + 0.5, "text": word} for i, word in enumerate(text.split())
    ] if start_s is not None else []  # fmt: skip
    end_s = words[-1]["end_s"] if words else None
    return {"start_s": start_s, "end_s": end_s, "text": text, "verdict": verdict, "words": words}


ROW = {
    "row_id": "0123456789abcdef",
    "uri": "songs/one.mp3",
    "title": "One\nof many",
    "artist": "Somebody",
    "audio": {"duration_s": 75.5},
    "lyrics": {
        "lines": [line("Hello my world", 59.996), line("not sung", None, "missing"), line("oh yeah", 70, "extra")]
    },
}


def test_lines_and_words_have_their_times():
    assert lrc(ROW, SUNG).splitlines() == [
        "[ti:One of many]",
        "[ar:Somebody]",
        "[length:01:15.50]",
        "[re:songmill]",
        "",
        "[01:00.00]<01:00.00>Hello <01:01.00>my <01:02.00>world <01:02.50>",
        "[01:10.00]<01:10.00>oh <01:11.00>yeah <01:11.50>",
    ]
    assert [(line.text, line.start_s) for line in parse(lrc(ROW, SUNG))] == [
        ("Hello my world", 60.0),
        ("oh yeah", 70.0),
    ]


def test_lines_are_chosen_by_verdict():
    assert "oh" not in lrc(ROW, {"canonical"})
    assert lrc(ROW, {"heard"}) is None
    assert lrc({**ROW, "lyrics": None}, SUNG) is None


def test_a_dataset_is_exported_a_file_a_song(tmp_path: Path):
    rows = [ROW, {**ROW, "row_id": "fedcba9876543210"}, {**ROW, "uri": "songs/two.mp3", "lyrics": None}]
    schema = pa.schema({"row_id": pa.string(), "uri": pa.string(), "title": pa.string(), "artist": pa.string(),
                        "audio": columns.AUDIO, "lyrics": columns.LYRICS})  # fmt: skip
    shards = tmp_path / "dataset/shards"
    shards.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), shards / "train-000000.parquet")
    assert "2 files" in asked("export", "lrc", tmp_path / "dataset", "--out", tmp_path / "lrc")
    assert sorted(file.name for file in (tmp_path / "lrc").iterdir()) == ["one.fedcba987654.lrc", "one.lrc"]
    text = (tmp_path / "lrc" / "one.lrc").read_text(encoding="utf-8")
    assert re.search(r"\[01:00\.00\]<01:00\.00>Hello", text)
    assert "not a dataset with the column lyrics" in asked("export", "lrc", tmp_path, "--out", tmp_path / "x", code=1)
    assert "no verdict sung" in asked(
        "export", "lrc", tmp_path / "dataset", "--out", tmp_path / "x", "--verdicts", "sung", code=2
    )


def test_scripts_without_spaces_have_none_between_words():
    row = {**ROW, "lyrics": {"lines": [line("風 の 中 oh", 1.0)]}}
    assert "[00:01.00]<00:01.00>風<00:02.00>の<00:03.00>中 <00:04.00>oh <00:04.50>" in lrc(row, SUNG)
