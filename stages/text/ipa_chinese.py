"""Mandarin to IPA: pypinyin, then a table of initials and finals (without tones, which melody replaces).

Values follow the broad transcription of the IPA journal's illustration of Standard Chinese (Lee and Zee 2003).
"""

_INITIALS = {
    "b": "p", "p": "pʰ", "m": "m", "f": "f", "d": "t", "t": "tʰ", "n": "n", "l": "l", "g": "k", "k": "kʰ", "h": "x",
    "j": "tɕ", "q": "tɕʰ", "x": "ɕ", "zh": "tʂ", "ch": "tʂʰ", "sh": "ʂ", "r": "ɻ", "z": "ts", "c": "tsʰ", "s": "s",
}  # fmt: skip

_FINALS = {
    "a": "a", "o": "o", "e": "ɤ", "ê": "ɛ", "i": "i", "u": "u", "v": "y", "er": "aɻ",
    "ai": "ai", "ei": "ei", "ao": "au", "ou": "ou", "an": "an", "en": "ən", "ang": "aŋ", "eng": "əŋ", "ong": "uŋ",
    "ia": "ja", "io": "jo", "ie": "jɛ", "iao": "jau", "iou": "jou", "ian": "jɛn", "in": "in", "iang": "jaŋ",
    "ing": "iŋ", "iong": "juŋ", "ua": "wa", "uo": "wo", "uai": "wai", "uei": "wei", "uan": "wan", "uen": "wən",
    "uang": "waŋ", "ueng": "wəŋ", "ve": "ɥɛ", "van": "ɥɛn", "vn": "yn", "m": "m", "n": "n", "ng": "ŋ",
}  # fmt: skip


def read(line: str) -> str:
    """IPA of a line, with a space between syllables; other than Chinese characters are left out."""
    from pypinyin import Style, lazy_pinyin  # here because its tables take long to load and few songs need them

    initials = lazy_pinyin(line, style=Style.INITIALS, errors="ignore")
    finals = lazy_pinyin(line, style=Style.FINALS, errors="ignore")
    return " ".join(_syllable(initial, final) for initial, final in zip(initials, finals, strict=True))


def _syllable(initial: str, final: str) -> str:
    if final == "i" and initial in {"zh", "ch", "sh", "r"}:
        final_ipa = "ʐ"
    elif final == "i" and initial in {"z", "c", "s"}:
        final_ipa = "z"
    else:
        final_ipa = _FINALS.get(final, "")
    return _INITIALS.get(initial, "") + final_ipa
