"""Numbers in Korean text read the Sino-Korean way, and the academic romanisation of Hangul."""

import re
from itertools import product

from stages.text.spoken_numbers import speak

_NUMBER = re.compile(r"[0-9]+")

# Letters of the Revised Romanization of Korean (2000), in the order of their Unicode composition.
_INITIALS = ("g", "kk", "n", "d", "tt", "l", "m", "b", "pp", "s", "ss", "", "j", "jj", "ch", "k", "t", "p", "h")
_VOWELS = (
    "a", "ae", "ya", "yae", "eo", "e", "yeo", "ye", "o", "wa", "wae", "oe", "yo", "u", "wo", "we", "wi", "yu", "eu",
    "ui", "i",
)  # fmt: skip
_FINALS = (
    "", "g", "kk", "gs", "n", "nj", "nh", "d", "l", "lg", "lm", "lb", "ls", "lt", "lp", "lh", "m", "b", "bs", "s", "ss",
    "ng", "j", "ch", "k", "t", "p", "h",
)  # fmt: skip
_SILENT = _INITIALS.index("")
_FIRST, _LAST = ord("가"), ord("힣")


def _splits(letters: str) -> int:
    """The number of ways to divide a run of consonants into a final and an initial."""
    return sum(letters[:cut] in _FINALS and letters[cut:] in _INITIALS for cut in range(len(letters)))


_AMBIGUOUS = frozenset(
    final + initial for final, initial in product(_FINALS, _INITIALS) if _splits(final + initial) > 1
)


def spell_numbers(text: str) -> str:
    """Numerals in Hangul, by their Sino-Korean names."""
    return _NUMBER.sub(lambda match: speak(match[0], "ko"), text)


def romanise(text: str) -> str:
    """Hangul letter by letter by spelling, not by sound (the academic form of the Revised Romanization).

    A hyphen precedes a syllable that follows another one and begins with the silent letter, or whose boundary would
    otherwise be ambiguous: 해요 -> hae-yo, 아싸 -> a-ssa.
    """
    romanised, former = "", None
    for sign in text:
        if not _FIRST <= ord(sign) <= _LAST:
            romanised, former = romanised + sign, None
            continue
        rest, final = divmod(ord(sign) - _FIRST, len(_FINALS))
        initial, vowel = divmod(rest, len(_VOWELS))
        apart = former is not None and (initial == _SILENT or former + _INITIALS[initial] in _AMBIGUOUS)
        romanised += "-" * apart + _INITIALS[initial] + _VOWELS[vowel] + _FINALS[final]
        former = _FINALS[final]
    return romanised
