"""Captions claim what the columns say, and nothing else."""

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import columns
from stages.caption import Caption
from stages.captioning.facts import tag_classes, tag_words
from stages.captioning.vocal_delivery import vocal_delivery

_VARIANTS = ("simplified", "expanded", "descriptive", "synonyms", "use_cases")
_TONICS = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
_PARTS = ["intro", "verse", "chorus", "bridge", "inst", "break", "outro"]
_TEMPO_WORDS = {
    "slow": (0, 80),
    "downtempo": (0, 80),
    "moderate": (80, 110),
    "mid-tempo": (80, 110),
    "upbeat": (110, 140),
    "lively": (110, 140),
    "fast": (140, 999),
    "rapid": (140, 999),
}
_LANGUAGES = {"en": "English", "ja": "Japanese", "de": "German"}
_TAGS = sorted({tag for tags in tag_classes().values() for tag in tags} | {"instrumental", "no vocals", "80s", "beat"})


def caption(**row):
    stage = Caption()
    stage.setup({})
    return stage.process({"row_id": "row", **row})["caption"]


def known(strategy):
    """The column is missing, null or measured."""
    return st.one_of(st.none(), strategy)


_ROWS = st.fixed_dictionaries(
    {
        "row_id": st.text(min_size=1, max_size=8),
        "audio": known(st.fixed_dictionaries({"duration_s": known(st.floats(1, 900))})),
        "rhythm": known(
            st.fixed_dictionaries({"bpm": known(st.floats(40, 220)), "time_signature": known(st.sampled_from([3, 4]))})
        ),
        "key": known(
            st.fixed_dictionaries(
                {
                    "tonic": st.sampled_from(_TONICS),
                    "mode": st.sampled_from(["major", "minor"]),
                    "strength": st.floats(0, 1),
                }
            )
        ),
        "tags": known(st.fixed_dictionaries({"names": st.lists(st.sampled_from(_TAGS), max_size=12, unique=True)})),
        "vocals": known(st.fixed_dictionaries({"has_vocals": known(st.booleans())})),
        "events": known(st.fixed_dictionaries({"live": st.floats(0, 1)})),
        "sections": known(
            st.fixed_dictionaries(
                {"items": st.lists(st.fixed_dictionaries({"label": st.sampled_from(_PARTS)}), max_size=8)}
            )
        ),
        "transcript": known(
            st.fixed_dictionaries(
                {
                    "text": st.sampled_from(["", "la la"]),
                    "language": known(st.sampled_from(sorted(_LANGUAGES))),
                    "segments": st.just([]),
                }
            )
        ),
    }
)


def claims(text: str, words: set[str]) -> set[str]:
    """The words and phrases that occur in a text, the longest first, each part of the text read once."""
    found = set()
    for word in sorted(words, key=len, reverse=True):
        text, times = re.subn(rf"(?<![\w-]){re.escape(word)}(?![\w-])", "_", text, flags=re.IGNORECASE)
        if times:
            found.add(word)
    return found


@given(_ROWS)
def test_every_claim_is_a_column_value(row):
    written = caption(**row)
    tags = (row["tags"] or {}).get("names", [])
    sung = (row["vocals"] or {}).get("has_vocals")
    rhythm, key = row["rhythm"] or {}, row["key"]
    bpm, meter = rhythm.get("bpm"), rhythm.get("time_signature")
    length_s = (row["audio"] or {}).get("duration_s")
    classes = tag_classes()
    vocabulary = {word for kind in classes.values() for words in kind.values() for word in words}
    allowed = {word for kind in classes.values() for tag in tags for word in kind.get(tag, [])}
    if not sung:
        allowed -= {word for words in classes["voice"].values() for word in words}
    for variant in _VARIANTS:
        text = written[variant]
        assert claims(text, vocabulary) <= allowed, text

        numbers = re.findall(r"\d+:\d\d|\d/4|\d+", text)
        minutes = [f"{round(length_s) // 60}:{round(length_s) % 60:02d}"] if length_s else []
        measured = minutes + ([str(round(bpm))] if bpm else []) + [f"{meter}/4"] * bool(meter)
        assert set(numbers) <= set(measured), text

        for found in re.findall(r"[A-G]#? (?:major|minor)", text):
            assert found == f"{key['tonic']} {key['mode']}"
        for word in claims(text, set(_TEMPO_WORDS)):
            assert bpm is not None
            assert _TEMPO_WORDS[word][0] <= bpm < _TEMPO_WORDS[word][1]

        assert ("vocals" in text or "voice" in text or "song" in text.lower().split()) <= bool(sung), text
        assert ("instrumental" in text.lower()) <= (sung is False), text
        assert ("live" in text.split()) <= ((row["events"] or {}).get("live", 0) >= 0.5)
        spoken = (row["transcript"] or {}).get("language")
        assert claims(text, set(_LANGUAGES.values())) <= {_LANGUAGES.get(spoken)}
        if "parts are" in text:
            labels = [item["label"] for item in row["sections"]["items"]]
            assert claims(text.split("parts are")[1].split(".")[0], set(_PARTS)) <= set(labels)


@given(_ROWS)
def test_captions_are_clean_sentences(row):
    written = caption(**row)
    pa.array([written], columns.CAPTION)
    for variant in _VARIANTS:
        text = written[variant]
        assert text[0].isupper()
        assert text.endswith(".")
        assert not re.search(r"  | [,.]|\.\.|,,|None|\{|\}|\ba [aeiou]", text), text
    assert written == caption(**row)


def test_a_full_row_is_told_in_every_variant():
    written = caption(
        audio={"duration_s": 121.4},
        rhythm={"bpm": 151.6, "time_signature": 4},
        key={"tonic": "C#", "mode": "minor", "strength": 0.8},
        tags={"names": ["rock", "guitar", "sad", "drums", "female vocalists"]},
        vocals={"has_vocals": True},
        events={"live": 0.7},
        sections={"items": [{"label": label} for label in ("intro", "verse", "verse", "chorus")]},
        transcript={"text": "hello", "language": "en", "segments": []},
    )
    assert written["simplified"] == "Fast sad rock song with guitar, drums and female vocals."
    for fact in ("152 BPM", "4/4", "C# minor", "intro, verse and chorus", "2:01", "recorded live", "English"):
        assert fact in written["expanded"]
    assert "sorrowful" in written["synonyms"]
    assert "a woman's voice" in written["synonyms"]
    assert written["analysis"] == {
        "genre": "rock",
        "instruments": ["guitar", "drums"],
        "tempo": "fast (152 BPM)",
        "mood": "sad",
    }
    assert written["source"] == "measured"


def test_rows_of_a_batch_are_told_apart_and_nulls_are_nothing():
    measured = {"bpm": 90.0, "time_signature": 3}
    batch = pa.table({"row_id": ["a", "b"], "rhythm": pa.array([measured, None], columns.RHYTHM)})
    first, second = Caption().run(batch)["caption"]
    assert (first["simplified"], second["simplified"]) == ("Moderate track.", "Track.")
    assert "90 BPM, in 3/4 time" in first["expanded"]


def test_an_unmeasured_row_claims_nothing():
    written = caption()
    assert written["simplified"] == "Track."
    assert written["analysis"] == {"genre": None, "instruments": [], "tempo": None, "mood": None}
    assert written["lyrical_rap_check"] is None


def test_wording_varies_from_row_to_row_but_not_from_run_to_run():
    row = {"rhythm": {"bpm": 100.0}, "tags": {"names": ["jazz", "piano"]}}
    texts = {caption(**{**row, "row_id": f"{n}"})["descriptive"] for n in range(20)}
    assert 2 < len(texts) <= 6
    assert caption(**row) == caption(**row)


def test_tags_of_a_class_are_said_once_and_strongest_first():
    assert tag_words(["metal", "rock", "pop"], "genre", synonyms=False) == ("metal", "rock")
    assert tag_words(["female", "woman"], "voice", synonyms=False) == ("female vocals",)


def test_every_tag_of_the_table_is_one_of_the_taggers(weights):
    import json

    entries = weights("musicnn-mtt", "musicnn-msd").values()
    known_tags = {label.lower() for entry in entries for label in json.loads((entry.path / "labels.json").read_text())}
    assert {tag for tags in tag_classes().values() for tag in tags} <= known_tags


def segments(words: int, seconds: float):
    return [{"start_s": 1.0, "end_s": 1.0 + seconds, "text": "", "words": [{"text": "la"}] * words}]


@pytest.mark.parametrize(
    ("has_vocals", "words", "tags", "expected"),
    [
        (None, 50, [], None),
        (False, 50, [], "instrumental"),
        (True, 5, [], None),
        (True, 15, ["hip-hop"], "sung"),
        (True, 25, [], "sung"),
        (True, 25, ["hip-hop"], "rap"),
        (True, 40, [], "rap"),
    ],
)
def test_rap_is_told_from_singing_by_words_a_second(has_vocals, words, tags, expected):
    row = {
        "vocals": {"has_vocals": has_vocals},
        "transcript": {"segments": segments(words, 10)},
        "tags": {"names": tags},
    }
    assert vocal_delivery(row) == expected
