"""Cleaning of lyrics and their token ids, against the released scheme's figures and for any text."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.base import Track
from stages.lyric_tokens import LyricTokens, clean, encode, load_vocabulary
from stages.text import chinese, korean
from stages.text.bpe import BUILT_IN, CORPUS, LINE_END_ID, START_ID, STRUCTURE_TAGS, cleaned_verses, train
from stages.text.language import LANGUAGES
from stages.text.variants import Variant, arrange, drawn
from tests.support.places import GOLDEN

CLEANED = json.loads((GOLDEN / "lyrics_clean.json").read_text(encoding="utf-8"))
RELEASED = os.environ.get("SONGMILL_RELEASED_VOCAB")


def decode(ids: list[int]) -> str:
    return VOCABULARY.decode(ids, skip_special_tokens=False).replace("[SPACE]", " ")


VOCABULARY = load_vocabulary()


def transcript(*lines: str, language: str = "en") -> dict:
    segments = [{"start_s": 0.0, "end_s": 1.0, "text": line, "words": []} for line in lines]
    return {"text": " ".join(lines), "language": language, "segments": segments}


def measure(variant: str = "plain-lines", **columns) -> dict:
    stage = LyricTokens(LyricTokens.Params(variant=variant))
    stage.setup({})
    return stage.process(Track(pa.table({name: pa.array([value]) for name, value in columns.items()}), 0))[
        "lyric_tokens"
    ]


def test_cleaning_matches_the_released_one_in_all_seventeen_languages():
    differing = {line["lang"] for line in CLEANED if clean(line["text"], line["lang"]) != line["clean"]}
    assert differing == set()
    assert {line["lang"] for line in CLEANED} == set(LANGUAGES)


@pytest.mark.skipif(not RELEASED, reason="SONGMILL_RELEASED_VOCAB names no released vocabulary, which is not shipped")
def test_ids_match_the_released_vocabulary():
    figures = json.loads(Path(RELEASED).with_name("lyrics_public.json").read_text(encoding="utf-8"))
    vocabulary = load_vocabulary(Path(RELEASED))
    for line in figures["lines"]:
        tag = "zh-cn" if line["lang"] == "zh" else line["lang"]
        assert vocabulary.encode(f"[{tag}]{line['clean']}".replace(" ", "[SPACE]")).ids == line["ids"], line["text"]
    for song in figures["songs"]:
        assert encode(song["lyrics"], vocabulary=vocabulary) == song["ids"]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", 'Say "hi" to Mrs. Jones @ 5', "say hi to misess jones at five"),
        ("en", "$1,200.50 on the 21st", "one thousand, two hundred dollars, fifty cents on the twenty-first"),
        (
            "fr",
            "Mme. Dupont a 3,5 € et 80%",
            "madame dupont a trois euros et cinquante centimes et quatre-vingts pour cent",
        ),
        ("pt", "Custa €5 ou 2,5", "custa cinco euros ou dois vírgula cinco"),
        ("ru", "Г-н Иванов, 1-й день", "господин иванов, первый день"),
        ("tr", "İstanbul'da 2. gün", "istanbul'da ikinci gün"),
        ("cs", "Dr. Novák, 5 koní", "doktor novák, 5 koní"),
        ("hi", "ABC 3 दिल", "abc 3 दिल"),
        ("ko", "5% 두 번째", "o peosenteu du beon-jjae"),
        ("en", "1111222233334444", "one one one one two two two two three three three three four four four four"),
    ],
)
def test_numbers_abbreviations_and_signs_are_spoken(language, text, expected):
    assert clean(text, language) == expected


@pytest.mark.parametrize(
    ("number", "read"),
    [
        ("0", "零"), ("10", "十"), ("12", "十二"), ("105", "一百零五"), ("110", "一百一十"), ("1005", "一千零五"),
        ("10005", "一万零五"), ("100500", "十万零五百"), ("100000001", "一亿零一"), ("13000000", "一千三百万"),
        ("007", "零零七"), ("3.14", "三点一四"), ("1999年", "一九九九年"), ("$5", "五美元"), ("-3", "负三"),
    ],
)  # fmt: skip
def test_chinese_numbers(number, read):
    assert chinese.spell_numbers(number) == read


# Examples of the academic form in the Revised Romanization's own rules, and of consonants that divide in two ways.
@pytest.mark.parametrize(
    ("hangul", "latin"),
    [("집", "jib"), ("값", "gabs"), ("독립", "doglib"), ("문리", "munli"), ("물엿", "mul-yeos"), ("굳이", "gud-i"),
     ("좋다", "johda"), ("가곡", "gagog"), ("없었습니다", "eobs-eoss-seubnida"), ("아싸", "a-ssa"), ("ab 요", "ab yo")],
)  # fmt: skip
def test_korean_is_romanised_after_its_spelling(hangul, latin):
    assert korean.romanise(hangul) == latin


def test_scheme_of_a_song():
    ids = encode("[Verse]\nHello baby\n\n[inst]")
    assert ids[0] == START_ID
    ends = [LINE_END_ID]
    hello = VOCABULARY.encode("[en]hello[SPACE]baby").ids
    verse, inst = (VOCABULARY.encode(f"[en]{tag}").ids for tag in ("[verse]", "[inst]"))
    assert len(verse) == len(inst) == 2
    assert ids == [START_ID, *verse, *ends, *hello, *ends, *ends, *inst, *ends]


def test_language_tags_stand_before_lines():
    lyrics = "月亮代表我的心\nI love you baby\n사랑해요\nさくらさくら"
    tags = [token for token in map(VOCABULARY.id_to_token, encode(lyrics)) if re.match(r"\[[a-z]{2}", token)]
    assert tags == ["[zh-cn]", "[en]", "[ko]", "[ja]"]


def test_structure_tags_are_single_tokens_of_the_released_order():
    first = VOCABULARY.token_to_id(STRUCTURE_TAGS[0])
    assert [VOCABULARY.token_to_id(tag) for tag in STRUCTURE_TAGS] == list(range(first, first + 12))


def test_the_shipped_vocabulary_is_what_its_corpus_trains(tmp_path):
    train(cleaned_verses(CORPUS), 2048).save(str(tmp_path / "bpe.json"))
    assert (tmp_path / "bpe.json").read_bytes() == BUILT_IN.read_bytes()


def test_training_needs_room_for_merges():
    with pytest.raises(ValueError, match="more than 289"):
        train(["la la la"], 289)


def test_a_file_that_is_no_lyric_vocabulary_is_refused(tmp_path):
    other = json.loads(BUILT_IN.read_text(encoding="utf-8"))
    other["added_tokens"] = []
    other["model"]["vocab"].pop("[START]")
    (tmp_path / "other.json").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.json is not a lyric vocabulary"):
        load_vocabulary(tmp_path / "other.json")


def test_verses_become_fewer_tokens_than_letters_in_every_language():
    for line in CLEANED:
        assert len(VOCABULARY.encode(line["clean"].replace(" ", "[SPACE]")).ids) < len(line["clean"].encode())


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30), st.sampled_from(LANGUAGES))
def test_any_text_is_cleaned_and_comes_back_from_its_ids(text, language):
    cleaned = clean(text, language)
    assert cleaned == " ".join(re.split(r"\s+", cleaned)).strip()
    ids = VOCABULARY.encode(cleaned.replace(" ", "[SPACE]")).ids
    assert decode(ids) == cleaned
    assert all(0 <= id < VOCABULARY.get_vocab_size() for id in ids)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.sampled_from([None, *LANGUAGES, "xx"]))
def test_any_lyrics_are_encoded(lyrics, language):
    ids = encode(lyrics, language)
    assert ids[0] == START_ID
    assert ids[-1] == LINE_END_ID
    assert all(0 <= id < VOCABULARY.get_vocab_size() for id in ids)


def test_aligned_lines_that_are_sung_are_taken():
    verdicts = {"One": "canonical", "Two": "missing", "Three": "extra"}
    lines = [{"text": text, "verdict": verdict, "start_s": None} for text, verdict in verdicts.items()]
    column = measure(transcript=transcript("Won"), lyrics={"lines": lines}, given_lyrics="Four")
    assert column["text"] == "[en]one\n[en]three"
    assert column["ids"] == encode("One\nThree", "en")
    assert re.fullmatch(r"lyric_bpe@[0-9a-f]{8}", column["vocabulary"])


def test_lyrics_that_came_with_the_song_go_before_the_transcript():
    column = measure(transcript=transcript("hello wörld"), given_lyrics="[ar:Us]\n[00:01.00]Hello world")
    assert column["text"] == "[en]hello world"


def test_transcripts_are_the_last_resort():
    column = measure(transcript=transcript("hello world", "la la la"))
    assert column["text"] == "[en]hello world\n[en]la la la"


def test_instrumentals_say_so_and_unread_vocals_do_not():
    assert measure(transcript=transcript())["text"] == "[en][inst]"
    assert measure(transcript=transcript("[inst]"))["text"] == "[en][inst]"
    assert measure(transcript=transcript(), vocals={"has_vocals": True})["ids"] == [START_ID, LINE_END_ID]


def test_the_vocabulary_is_part_of_the_fingerprint(tmp_path):
    assert LyricTokens().files == ()
    assert LyricTokens(LyricTokens.Params(vocabulary=tmp_path / "v.json")).files == (tmp_path / "v.json",)


SECTIONS = {"items": [
    {"start_s": 0.0, "end_s": 5.0, "label": "intro"},
    {"start_s": 5.0, "end_s": 20.0, "label": "verse"},
    {"start_s": 20.0, "end_s": 40.0, "label": "chorus"},
]}  # fmt: skip
LINES = {"lines": [
    {"text": text, "verdict": "canonical", "start_s": start_s}
    for text, start_s in (("One", 6.0), ("Two", None), ("Three", 21.0), ("Four", 25.0))
]}  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "text"),
    [
        ("plain-lines", "[en]one\n[en]two\n[en]three\n[en]four"),
        ("plain-flow", "[en]one two three four"),
        ("tagged-lines", "[en][verse]\n[en]one\n[en]two\n[en][chorus]\n[en]three\n[en]four"),
        ("tagged-flow", "[en][verse]\n[en]one two\n[en][chorus]\n[en]three four"),
    ],
)
def test_lyrics_are_written_down_in_four_ways(variant, text):
    column = measure(variant, transcript=transcript("one two three four"), lyrics=LINES, sections=SECTIONS)
    assert (column["text"], column["variant"]) == (text, variant)
    assert column["ids"] == encode("\n".join(line[4:] for line in text.splitlines()), "en")


def test_tags_need_sections_and_times():
    untimed = {"lines": [{**line, "start_s": None} for line in LINES["lines"]]}
    for columns in ({"lyrics": LINES}, {"lyrics": untimed, "sections": SECTIONS}):
        column = measure("tagged-flow", transcript=transcript("one"), **columns)
        assert (column["text"], column["variant"]) == ("[en]one two three four", "plain-flow")


def test_a_row_draws_its_variant_from_its_id_and_all_are_drawn_alike_often():
    draws = Counter(drawn(f"{number:016x}") for number in range(4000))
    assert len(draws) == 4
    assert all(900 < count < 1100 for count in draws.values())
    columns = {"transcript": transcript("one"), "lyrics": LINES, "sections": SECTIONS, "row_id": f"{7:016x}"}
    assert measure("drawn", **columns)["variant"] == drawn(f"{7:016x}")


@given(st.lists(st.tuples(st.text(min_size=1), st.none() | st.floats(0, 100))), st.sampled_from(get_args(Variant)))
def test_no_variant_loses_a_line(lines, variant):
    made, _ = arrange(lines, SECTIONS["items"], variant)
    assert " ".join(line for line in made if line not in STRUCTURE_TAGS) == " ".join(
        text for text, _ in lines if text not in STRUCTURE_TAGS
    )


@pytest.mark.parametrize(
    ("language", "line", "released", "right"),
    [("en", "Mrs. Jones", "misess jones", "missus jones"), ("cs", "12 měsíců", "12 měsíců", "dvanáct měsíců")],
)
def test_mistakes_of_the_released_cleaning_are_made_for_its_vocabulary_only(language, line, released, right):
    assert clean(line, language) == released
    assert clean(line, language, compat=False) == right
    ours = encode(line, language)
    assert ours == [START_ID, *VOCABULARY.encode(f"[{language}]{right}".replace(" ", "[SPACE]")).ids, LINE_END_ID]
