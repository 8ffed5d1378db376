"""IPA of transcripts: every language is read, marks are gone, other scripts among the lines are noticed."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.base import Track
from stages.phonemes import Phonemes
from stages.text.ipa import to_ipa
from stages.text.language import LANGUAGES, detect, line_languages

# Sounds that any reading of the line has.
READINGS = {
    "en": ("I'm walking down the road", "wɔkɪŋ"),
    "de": ("Der Mond ist aufgegangen", "moːnt".replace("ː", "")),
    "fr": ("Les feuilles mortes", "fœj"),
    "es": ("La cucaracha ya no puede", "kukaɾatʃa"),
    "it": ("Nel blu dipinto di blu", "blu"),
    "pt": ("Chega de saudade", "ʃeɡ"),
    "pl": ("Wlazł kotek na płotek", "pwɔtɛk"),
    "tr": ("Üsküdar'a gider iken", "øskydaɾa"),
    "ru": ("Во поле берёза стояла", "vo pol".replace("l", "ɭ")),
    "cs": ("Ach synku, synku", "siŋku siŋku"),
    "nl": ("Daar bij die molen", "molən"),
    "ar": ("يا ليل يا عين", "lajl"),
    "zh": ("月亮代表我的心", "ɥɛ ljaŋ tai pjau wo tɤ ɕin"),
    "ja": ("上を向いて歩こう", "ɯeomɯiteaɾɯkoo"),
    "hu": ("Tavaszi szél vizet áraszt", "sel vizɛt"),
    "ko": ("아리랑 아리랑", "ɐɾiɾɐŋ ɐɾiɾɐŋ"),
    "hi": ("ओ मेरे दिल के चैन", "meɾe dɪl"),
}


def segment(text: str, start_s: float = 0.0) -> dict:
    return {"start_s": start_s, "end_s": start_s + 2.0, "text": text, "words": []}


def measure(transcript: dict | None) -> list[str]:
    stage = Phonemes()
    stage.setup({})
    table = pa.table({"transcript": pa.array([transcript], type=pa.infer_type([transcript or {"text": ""}]))})
    column = stage.process(Track(table, 0))["phonemes"]
    assert column["model"] == "songmill.phonemes@r1"
    return column["lines"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_is_read_in_its_own_sounds(language):
    text, sounds = READINGS[language]
    assert sounds in to_ipa([text], language)[0]


def test_one_line_a_segment_in_order():
    segments = [segment("Hello world"), segment("", 2.0), segment("Hello, world!", 4.0)]
    hello, empty, again = measure({"text": "Hello world Hello, world!", "language": "en", "segments": segments})
    assert hello == again == "həloʊ wɜld"
    assert empty == ""


@pytest.mark.parametrize("text", ["", " ", "[inst]"])
def test_instrumentals_have_no_lines(text):
    assert measure({"text": text, "language": "en", "segments": [segment("Thank you for watching")]}) == []


def test_a_missing_transcript_has_no_lines():
    assert measure(None) == []


def test_lines_in_another_script_or_clearly_another_language_are_read_in_theirs():
    lines = ["사랑해요", "I love you baby and I always will be yours", "さくら", "baby"]
    korean, english, japanese, word = to_ipa(lines, "ko")
    assert korean == to_ipa(["사랑해요"], "ko")[0]
    assert english == to_ipa([lines[1]], "en")[0]
    assert japanese == "sakɯɾa"
    assert word == "beɪbi"


def test_numbers_are_read_in_chinese_and_foreign_words_stay():
    assert to_ipa(["我有3个 love"], "zh") == ["wo jou san kɤ lʌv"]


def test_unknown_languages_are_read_as_english():
    assert to_ipa(["hello"], "xx") == to_ipa(["hello"], None) == to_ipa(["hello"], "en-GB")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20), st.sampled_from(["en", "ja", "zh", "ko", "ru"]))
def test_ipa_of_any_text_is_letters_and_single_spaces(text, language):
    (ipa,) = to_ipa([text], language)
    assert ipa == " ".join(ipa.split())
    assert not set(ipa) & set("ˈˌː")
    assert all(unicodedata.category(sign)[0] in "LM" or sign == " " for sign in ipa)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("ÀãÚ©ж", "ru"),
        ("ÀãÚ© 𑘈", "ru"),
        ("6øÀ8¾\x8e\x02³ã¿Úi©ÝÛ\U000dbb92𑘈®H", "ru"),
        ("©\x82{ãú¼¬ËV\U0001cde4", "hi"),
    ],
)
def test_symbols_between_scripts_crash_no_espeak(text, language):
    """They ended the process: a segmentation fault in libespeak-ng 1.52."""
    assert to_ipa([text], language)[0]


def test_symbols_in_a_line_of_one_script_are_read_as_words():
    assert to_ipa(["20° in the shade"], "en") == ["twɛnti dᵻɡɹiz ɪnðə ʃeɪd"]


@pytest.mark.parametrize("text", ["\uf9dd", "ㄅㄆ", "\U000323b0 and"])
def test_han_signs_outside_the_usual_blocks_are_read_without_end(text):
    assert to_ipa([text], "zh")[0] == " ".join(to_ipa([text], "zh")[0].split())


def test_short_unsure_lines_take_the_language_of_the_song():
    lines = ["la la la", "Ich tanze mit dir durch die ganze Nacht", "Komm, wir fliegen über die Dächer der Stadt"]
    assert line_languages(lines) == ["de", "de", "de"]
    assert line_languages(["oh yeah"], "pt-BR") == ["pt"]
    assert line_languages([]) == []
    assert line_languages(["123"]) == ["en"]


def test_han_is_japanese_only_in_a_japanese_song():
    assert line_languages(["東京", "星空の下で君と朝まで踊ろう"]) == ["ja", "ja"]
    assert line_languages(["月亮", "我和你在星空下跳舞"]) == ["zh", "zh"]
    assert detect("사랑") == ("ko", 1.0)
