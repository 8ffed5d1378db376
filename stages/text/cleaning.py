"""Lyric lines in the form that the lyric encoder reads: lower-case, spelled out, in scripts it was trained on.

The rules follow the cleaning that the released ACE-Step v1 checkpoint was trained with. Its obvious mistakes ("mrs."
read as "misess", Czech numerals left as digits) are only reproduced with `compat`, for that checkpoint's vocabulary.
"""

import re
from collections.abc import Mapping
from functools import cache

from cutlet import Cutlet

from stages.text import chinese, korean
from stages.text.spoken_numbers import speak_numbers

_SPACES = re.compile(r"\s+")

# Spoken before a full stop: "mr." -> "mister".
_ABBREVIATIONS = {
    "en": {
        "mrs": "misess", "mr": "mister", "dr": "doctor", "st": "saint", "co": "company", "jr": "junior", "maj": "major",
        "gen": "general", "drs": "doctors", "rev": "reverend", "lt": "lieutenant", "hon": "honorable",
        "sgt": "sergeant", "capt": "captain", "esq": "esquire", "ltd": "limited", "col": "colonel", "ft": "fort",
    },
    "de": {"fr": "frau", "dr": "doktor", "st": "sankt", "co": "firma", "jr": "junior"},
    "fr": {
        "mme": "madame", "mr": "monsieur", "dr": "docteur", "st": "saint", "co": "compagnie", "jr": "junior",
        "ltd": "limitée",
    },
    "es": {
        "sra": "señora", "sr": "señor", "dr": "doctor", "dra": "doctora", "st": "santo", "co": "compañía",
        "jr": "junior", "ltd": "limitada",
    },
    "it": {
        "sig": "signore", "dr": "dottore", "st": "santo", "co": "compagnia", "jr": "junior", "ltd": "limitata",
    },
    "pt": {
        "sra": "senhora", "sr": "senhor", "dr": "doutor", "dra": "doutora", "st": "santo", "co": "companhia",
        "jr": "júnior", "ltd": "limitada",
    },
    "pl": {"p": "pani", "m": "pan", "dr": "doktor", "sw": "święty", "jr": "junior"},
    "tr": {"b": "bay", "byk": "büyük", "dr": "doktor"},
    "cs": {"dr": "doktor", "ing": "inženýr", "p": "pan"},
    "nl": {"dhr": "de heer", "mevr": "mevrouw", "dr": "dokter", "jhr": "jonkheer"},
    "hu": {"dr": "doktor", "b": "bácsi", "nőv": "nővér"},
}  # fmt: skip
_RIGHTED = {**_ABBREVIATIONS, "en": {**_ABBREVIATIONS["en"], "mrs": "missus"}}
_RUSSIAN_ABBREVIATIONS = {"г-жа": "госпожа", "г-н": "господин", "д-р": "доктор"}  # a hyphen in place of the stop

_SYMBOLS = {
    language: dict(zip("&@%#$£°", words.split(","), strict=True))
    for language, words in {
        "en": "and,at,percent,hash,dollar,pound,degree",
        "de": "und,at,prozent,raute,dollar,pfund,grad",
        "fr": "et,arobase,pour cent,dièse,dollar,livre,degrés",
        "es": "y,arroba,por ciento,numeral,dolar,libra,grados",
        "it": "e,chiocciola,per cento,cancelletto,dollaro,sterlina,gradi",
        "pt": "e,arroba,por cento,cardinal,dólar,libra,graus",
        "pl": "i,małpa,procent,krzyżyk,dolar,funt,stopnie",
        "tr": "ve,at,yüzde,diyez,dolar,sterlin,derece",
        "ru": "и,собака,процентов,номер,доллар,фунт,градус",
        "cs": "a,na,procento,křížek,dolar,libra,stupně",
        "nl": "en,bij,procent,hekje,dollar,pond,graden",
        "ar": "و,على,في المئة,رقم,دولار,جنيه,درجة",
        "zh": "和,在,百分之,号,美元,英镑,度",
        "hu": "és,kukac,százalék,kettőskereszt,dollár,font,fok",
        "ko": "그리고,에,퍼센트,번호,달러,파운드,도",
    }.items()
}


def clean(line: str, language: str, *, compat: bool = True) -> str:
    """One line in one of `stages.text.language.LANGUAGES` as plain lower-case text.

    Latin, Cyrillic and Arabic lines keep their script, with numbers, abbreviations and symbols spelled out; Chinese
    becomes pinyin with tone digits, Japanese Hepburn romaji, Korean its academic romanisation; Hindi is only
    lower-cased. With `compat` the released cleaning's mistakes are reproduced too.
    """
    if language == "ja":
        return _collapse(_cutlet().romaji(_collapse(line)).lower())
    if language == "hi":
        return _collapse(line.lower())
    text = line.replace('"', "").replace("İ", "i").lower()
    if language == "zh":
        return _collapse(chinese.pinyin(_spell_symbols(chinese.spell_numbers(text), language)))
    if language == "ko":
        text = korean.spell_numbers(text)
    else:
        text = speak_numbers(text, language, spare_czech=compat)
        text = _spell_abbreviations(text, language, _ABBREVIATIONS if compat else _RIGHTED)
    text = _spell_symbols(text, language)
    return _collapse(korean.romanise(text) if language == "ko" else text)


def _spell_abbreviations(text: str, language: str, abbreviations: Mapping[str, Mapping[str, str]]) -> str:
    if language == "ru":
        return re.sub(r"\b(г-жа|г-н|д-р)\b", lambda match: _RUSSIAN_ABBREVIATIONS[match[1]], text)
    words = abbreviations.get(language, {})
    return re.sub(r"\b(\w+)\.", lambda match: words.get(match[1], match[0]), text)


def _spell_symbols(text: str, language: str) -> str:
    for symbol, word in _SYMBOLS[language].items():
        text = text.replace(symbol, f" {word} ")
    return text


def _collapse(text: str) -> str:
    return _SPACES.sub(" ", text).strip()


@cache
def _cutlet() -> Cutlet:
    return Cutlet()
