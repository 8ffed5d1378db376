"""Numbers in Chinese text as they are read aloud, and Chinese text as pinyin with tone digits."""

import re

_DIGITS = "零一二三四五六七八九"
_PLACES = ("", "十", "百", "千")
_MYRIADS = ("", "万", "亿", "兆")
_LONGEST = len(_PLACES) * len(_MYRIADS)  # longer numbers are read digit by digit

_NUMBER = r"(\d+(?:\.\d+)?)"
_YEAR = re.compile(r"(\d{4}|\d{2})(?=年)", re.ASCII)
_PERCENT = re.compile(_NUMBER + "[%％]", re.ASCII)
_MONEY = re.compile(r"([$¥￥€£])\s*" + _NUMBER, re.ASCII)
_NEGATIVE = re.compile(r"(?<![\w.])-(?=\d)", re.ASCII)
_ANY = re.compile(_NUMBER, re.ASCII)
_CURRENCIES = {"$": "美元", "¥": "元", "￥": "元", "€": "欧元", "£": "英镑"}

_PUNCTUATION = str.maketrans("，。！？；：、（）【】「」『』《》“”‘’～—…", ",.!?;:,()[]''''''''''~-.")


def spell_numbers(text: str) -> str:
    """Arabic numerals in Chinese characters: years digit by digit, percentages and money in Chinese order."""
    text = _YEAR.sub(lambda match: _digits(match[1]), text)
    text = _PERCENT.sub(lambda match: "百分之" + _number(match[1]), text)
    text = _MONEY.sub(lambda match: _number(match[2]) + _CURRENCIES[match[1]], text)
    text = _NEGATIVE.sub("负", text)
    return _ANY.sub(lambda match: _number(match[1]), text)


def pinyin(text: str) -> str:
    """Pinyin with tone digits, 5 for the neutral tone; other characters stay, full-width punctuation as ASCII."""
    from pypinyin import Style, lazy_pinyin  # here because its tables take long to load and few songs need them

    syllables = lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True)
    return "".join(syllables).translate(_PUNCTUATION)


def _number(written: str) -> str:
    whole, _, decimals = written.partition(".")
    return _integer(whole) + ("点" + _digits(decimals) if decimals else "")


def _integer(digits: str) -> str:
    """Chinese groups four digits; a gap of zeros within or between groups is read as one zero."""
    if len(digits) > _LONGEST or (len(digits) > 1 and digits.startswith("0")):
        return _digits(digits)
    spoken, gap = "", False
    for place, digit in zip(reversed(range(len(digits))), digits, strict=True):
        if digit == "0":
            gap = bool(spoken)
        else:
            spoken += ("零" if gap else "") + _DIGITS[int(digit)] + _PLACES[place % 4]
            gap = False
        group = digits[max(0, len(digits) - place - 4) : len(digits) - place]
        if place % 4 == 0 and place and group.strip("0"):
            spoken += _MYRIADS[place // 4]
    return re.sub("^一十", "十", spoken) or _DIGITS[0]


def _digits(written: str) -> str:
    return "".join(_DIGITS[int(digit)] for digit in written)
