"""Rows whose columns contradict each other are remarked on."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.curation.flags import disagreements, with_flags
from schemas import columns
from stages.caption import Caption


@pytest.mark.parametrize(
    ("other", "flags"),
    [
        (120.0, []),
        (123.9, []),
        (60.5, ["bpm_octave"]),
        (241.0, ["bpm_octave"]),
        (40.0, ["bpm_octave"]),
        (93.0, ["bpm"]),
    ],
)
def test_two_tempi(other, flags) -> None:
    assert disagreements({"rhythm": {"bpm": 120.0}, "sections": {"bpm": other}}) == flags
    assert disagreements({"rhythm": {"bpm": None}, "sections": {"bpm": other}}) == []
    assert disagreements({"rhythm": {"bpm": 120.0}, "sections": {"items": []}}) == []


@pytest.mark.parametrize(
    ("text", "bpm", "flags"),
    [
        ("A slow ballad at 152 BPM.", 152.0, ["caption_tempo"]),
        ("Runs at 140 beats per minute.", 152.0, ["caption_bpm"]),
        ("A Fast-paced song, 152bpm", 151.6, []),
        ("An uptempo tune at 90 BPM", 60.0, ["caption_bpm", "caption_tempo"]),
        ("Guitars breakfast slowly.", 152.0, []),
    ],
)
def test_tempo_in_words(text, bpm, flags) -> None:
    assert disagreements({"rhythm": {"bpm": bpm}, "caption": {"expanded": text}}) == flags


@given(st.floats(40, 250), st.text(max_size=4))
def test_measured_captions_never_contradict_the_tempo(bpm, row_id) -> None:
    row = {"row_id": row_id, "rhythm": {"bpm": bpm, "time_signature": 4}}
    assert disagreements(row | Caption().process(row)) == []


def test_languages_of_lyrics_and_voice() -> None:
    text = "[en][verse]\n[de]die welt ist schön\n[de]ich tanze\n[en]baby"
    row = {"transcript": {"language": "en"}, "lyric_tokens": {"text": text}}
    assert disagreements(row) == ["lyric_language"]
    assert disagreements(row | {"transcript": {"language": "de"}}) == []
    assert disagreements({"transcript": {"language": "zh"}, "lyric_tokens": {"text": "[zh-cn]ni3 hao3"}}) == []
    assert disagreements({"transcript": {"language": None}, "lyric_tokens": {"text": text}}) == []


def test_rows_keep_their_flags_and_get_more() -> None:
    captions = [{"failure": "ReplyError: it holds no JSON object"}, None]
    flags = [["license_unknown"], None]
    rows = pa.table(
        {"row_id": ["a", "b"], "caption": pa.array(captions, columns.CAPTION), "flags": pa.array(flags, columns.FLAGS)}
    )
    assert with_flags(rows)["flags"].to_pylist() == [["license_unknown", "caption_fallback"], []]
    assert with_flags(rows).schema == rows.schema
    assert with_flags(rows.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize(
    ("second", "flags"),
    [
        (("A", "minor"), ["key_relative"]),
        (("C", "major"), []),
        (("C", "minor"), ["key"]),
        (("G", "major"), ["key"]),
        ((None, None), []),
    ],
)
def test_keys_by_two_methods(second, flags):
    key = {"tonic": "C", "mode": "major", "strength": 0.8, "second_tonic": second[0], "second_mode": second[1]}
    assert disagreements({"key": key}) == flags
