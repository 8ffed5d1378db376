"""Numbers, ordinals and amounts of money in a text as words, with num2words."""

import re
from functools import lru_cache
from typing import Any

_LONGEST = 15  # digits; longer numbers are read digit by digit

# Separators of thousands.
_GROUPED = {
    language: re.compile(rf"\d{{1,3}}(?:{re.escape(sign)}\d{{3}})+(?!\d)", re.ASCII)
    for language, sign in {
        "en": ",", "ru": " ", "de": ".", "fr": ".", "es": ".", "it": ".", "pt": ".", "pl": ".", "tr": ".",
        "nl": ".", "hu": ".", "ar": ",",
    }.items()
}  # fmt: skip
_DECIMAL = re.compile(r"(\d+)[.,](\d+)", re.ASCII)
_INTEGER = re.compile(r"\d+", re.ASCII)

_ORDINALS = {
    language: re.compile(rf"(\d+)(?:{endings})", re.ASCII)
    for language, endings in {
        "en": r"st\b|nd\b|rd\b|th\b",
        "de": r"\.(?=\s|$)|º",
        "fr": r"(?:ères?|èmes?|ère|er|re|e)(?!\w)|º|ª",
        "es": r"º|ª|(?:er|os|as|o|a)(?!\w)",
        "it": r"º|°|ª|(?:o|a|i|e)(?!\w)",
        "pt": r"º|ª|(?:os|as|o|a)(?!\w)",
        "pl": r"º|ª",
        "ar": r"ون|ين|ث|ر|ى",
        "ru": r"-(?:ого|го|ое|ье|ой|ый|ий|ая|й|я|е)(?!\w)",
        "nl": r"(?:ste|de|e)(?!\w)",
        "tr": r"\.(?=\s|$)|'?(?:[iıuü]?nc[iıuü])(?!\w)",
        "hu": r"\.(?=\s|$)|(?:[aeoö]dik|ik)(?!\w)",
    }.items()
}

_CURRENCIES = {"$": "USD", "£": "GBP", "€": "EUR"}
_MONEY = re.compile(r"([$£€])\s?(\d+(?:[.,]\d{1,2})?)(?!\d)|(?<![\d.,])(\d+(?:[.,]\d{1,2})?)\s?([$£€])", re.ASCII)
# What num2words puts before the cents, which are dropped if there are none.
_BEFORE_CENTS = {
    "es": " con ", "fr": " et ", "de": " und ", "pt": " e ", "it": " e ",
    "en": ", ", "pl": ", ", "ru": ", ", "nl": ", ", "hu": ", ",
}  # fmt: skip


def speak_numbers(text: str, language: str, *, spare_czech: bool = True) -> str:
    """A text with every number as words; Korean and Chinese have modules of their own.

    With `spare_czech` Czech numerals stay: the released lyrics were tokenised with them.

    Arabic and Turkish amounts of money are read as a number next to its symbol (num2words has no dollar there).
    """
    if language == "cs" and spare_czech:
        return text
    if language in _GROUPED:
        text = _GROUPED[language].sub(lambda match: re.sub(r"\D", "", match[0]), text)
    if language in _BEFORE_CENTS:
        text = _MONEY.sub(lambda match: _amount(match, language), text)
    if language in _ORDINALS:
        text = _ORDINALS[language].sub(lambda match: speak(match[1], language, to="ordinal"), text)
    text = _DECIMAL.sub(lambda match: speak(f"{match[1]}.{match[2]}", language), text)
    return _INTEGER.sub(lambda match: speak(match[0], language), text)


@lru_cache(10_000)
def speak(number: str, language: str, **form: Any) -> str:
    """A number ("12", "2.5") as words; digit by digit if it is too long, unchanged if num2words fails."""
    from num2words import num2words  # here because its languages take long to import and few lines have numbers

    if len(number) > _LONGEST:
        return " ".join(speak(digit, language) for digit in number if digit.isdigit())
    try:
        return num2words(float(number) if "." in number else int(number), lang=language, **form)
    except (ArithmeticError, LookupError, NotImplementedError, TypeError, ValueError):
        return number  # its language modules fail in many ways beyond everyday numbers


def _amount(match: re.Match[str], language: str) -> str:
    sign, number = (match[1], match[2]) if match[1] else (match[4], match[3])
    spoken = speak(f"{float(number.replace(',', '.')):.2f}", language, to="currency", currency=_CURRENCIES[sign])
    if spoken[0].isdigit():
        return match[0]
    if number.replace(",", ".").endswith(".00") or not re.search("[.,]", number):
        spoken = spoken.rpartition(_BEFORE_CENTS[language])[0] or spoken
    return spoken
