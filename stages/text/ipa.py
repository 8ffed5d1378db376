"""Text to IPA: espeak for most languages, OpenJTalk for Japanese and pinyin for Chinese, which espeak cannot read."""

import logging
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import espeakng_loader

from stages.text import chinese, ipa_chinese, ipa_japanese
from stages.text.language import FALLBACK, known, spoken_language

if TYPE_CHECKING:
    from phonemizer.backend import EspeakBackend

_VOICES = {"en": "en-us", "fr": "fr-fr"}  # espeak's other voices are named like the language
_MARKS = frozenset("ˈˌːˑˎ‿͜͡")  # stress, length and ties: singing keeps none of them
_SPACES = re.compile(r"\s+")
_UNREADABLE = frozenset({"Cc", "Cn", "Co", "Cs"})  # control, unassigned, private, half of a surrogate pair
_SIGNS = frozenset("©®¦")  # nobody sings them
_HAN_RUNS = re.compile(r"([\u3400-\u9fff\U00020000-\U000323af]+)")


def to_ipa(lines: Sequence[str], language: str | None) -> list[str]:
    """IPA of every line, without stress and length marks, words separated by spaces; a line without letters gives "".

    A line that is clearly in a language other than `language` (by its script, or by lingua with high confidence) is
    read in its own; languages not in `stages.text.language.LANGUAGES` are read as English.
    """
    declared = known(language) or FALLBACK
    ipa = [""] * len(lines)
    by_language: dict[str, list[int]] = {}
    for index, line in enumerate(lines):
        if any(map(str.isalnum, line)):
            by_language.setdefault(spoken_language(line, declared), []).append(index)
    for spoken, indices in by_language.items():
        for index, phones in zip(indices, _read([lines[index] for index in indices], spoken), strict=True):
            ipa[index] = _plain(phones)
    return ipa


def _plain(ipa: str) -> str:
    kept = (sign if unicodedata.category(sign)[0] in "LM" else " " for sign in ipa if sign not in _MARKS)
    return " ".join("".join(kept).split())


def _read(lines: list[str], language: str) -> list[str]:
    if language == "ja":
        return [ipa_japanese.read(line) for line in lines]
    if language == "zh":
        return [_chinese(line) for line in lines]
    # Line by line: espeak's reading of a line must not depend on its neighbours.
    return [" ".join(_espeak(language).phonemize([_readable(line)], strip=True)) for line in lines]


def _readable(line: str) -> str:
    """The line without what espeak may crash on: private characters, which it takes for codes of its own, and signs
    among letters that it spells ("Ã©ж").
    """
    signs = (" " if unicodedata.category(s) in _UNREADABLE or s in _SIGNS else s for s in line)
    return _SPACES.sub(" ", "".join(signs))


def _chinese(line: str) -> str:
    """Han characters read in Mandarin, foreign words among them in English."""
    runs = _HAN_RUNS.split(chinese.spell_numbers(unicodedata.normalize("NFC", line)))
    return " ".join(ipa_chinese.read(run) if _HAN_RUNS.match(run) else _foreign(run) for run in runs)


def _foreign(run: str) -> str:
    """Words in a Chinese line; what still looks Chinese (bopomofo, rare characters) is read as espeak reads it."""
    if not any(map(str.isalnum, run)):
        return ""
    spoken = spoken_language(run, FALLBACK)
    return _read([run], FALLBACK if spoken == "zh" else spoken)[0]


@cache
def _espeak(language: str) -> "EspeakBackend":
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    quiet = logging.getLogger("songmill.espeak")
    quiet.setLevel(logging.ERROR)
    voice = _VOICES.get(language, language)
    return EspeakBackend(voice, language_switch="remove-flags", words_mismatch="ignore", logger=quiet)
