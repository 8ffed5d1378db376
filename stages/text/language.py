"""Language of lyric lines, restricted to the seventeen languages of the lyric vocabulary."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

from lingua import Language, LanguageDetector, LanguageDetectorBuilder

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "pl", "tr", "ru", "cs", "nl", "ar", "zh", "ja", "hu", "ko", "hi")
FALLBACK = "en"

_SURE = 0.5  # least confidence at which a line's detected language is accepted
_CERTAIN = 0.95  # least confidence at which a line's detected language overrides the declared one
_LONG = 20  # letters that a line needs to override it

# Unicode names of letters begin with their script. Han decides nothing: Chinese and Japanese share it.
_SCRIPT_LANGUAGES = {
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "HANGUL": ("ko",),
    "DEVANAGARI": ("hi",),
    "ARABIC": ("ar",),
    "CYRILLIC": ("ru",),
    "CJK": ("zh", "ja"),
}
_LATIN_LANGUAGES = tuple(
    language for language in LANGUAGES if not any(language in languages for languages in _SCRIPT_LANGUAGES.values())
)


def known(language: str | None) -> str | None:
    """An ISO 639-1 code with or without a region ("pt-BR") as one of `LANGUAGES`; None for any other."""
    code = (language or "").lower().replace("_", "-").split("-")[0]
    return code if code in LANGUAGES else None


def detect(text: str) -> tuple[str | None, float]:
    """The likeliest language of a text and lingua's confidence in it, 0..1; (None, 0) if the letters tell nothing."""
    languages = _languages_of_script(text)
    if len(languages) == 1:
        return languages[0], 1.0
    ranking = _detector().compute_language_confidence_values(text)
    if not ranking or ranking[0].value == 0:
        return None, 0.0
    return ranking[0].language.iso_code_639_1.name.lower(), ranking[0].value


def line_languages(lines: Sequence[str], declared: str | None = None) -> list[str]:
    """Language of every line of a song.

    A line whose own language is unclear ("la la la") gets the song's declared language, or the language of most letters
    in its other lines. Han characters without kana are Japanese only in a Japanese song.
    """
    guesses = [detect(line) for line in lines]
    song = known(declared) or _prevailing(lines, guesses)
    return [
        _decide(line, language, confidence, song) for line, (language, confidence) in zip(lines, guesses, strict=True)
    ]


def spoken_language(line: str, declared: str) -> str:
    """The declared language of a line, unless its script or a long text with high confidence shows another."""
    languages = _languages_of_script(line)
    foreign = bool(languages) and declared not in languages
    telling = languages == _LATIN_LANGUAGES and sum(map(str.isalpha, line)) >= _LONG
    if not (foreign or telling):
        return declared
    language, confidence = detect(line)
    return language if language and confidence >= (_SURE if foreign else _CERTAIN) else _nearest(declared, languages)


def _decide(line: str, language: str | None, confidence: float, song: str) -> str:
    if language == "zh" and song == "ja":
        return song
    return language if language and confidence >= _SURE else _nearest(song, _languages_of_script(line))


def _nearest(language: str, languages: Sequence[str]) -> str:
    """The expected language of a line, or another one if its script rules that out."""
    if not languages or language in languages:
        return language
    return FALLBACK if FALLBACK in languages else languages[0]


def _prevailing(lines: Sequence[str], guesses: Sequence[tuple[str | None, float]]) -> str:
    letters: Counter[str] = Counter()
    for line, (language, confidence) in zip(lines, guesses, strict=True):
        if language and confidence >= _SURE:
            letters[language] += sum(map(str.isalpha, line))
    return max(letters, key=lambda language: (letters[language], language)) if letters else FALLBACK


def _languages_of_script(text: str) -> tuple[str, ...]:
    """Those of `LANGUAGES` that are written in the text's main script; any kana makes Han characters Japanese."""
    scripts = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    if not scripts:
        return ()
    if scripts["HIRAGANA"] + scripts["KATAKANA"] and scripts["CJK"]:
        return ("ja",)
    return _SCRIPT_LANGUAGES.get(max(scripts, key=lambda script: (scripts[script], script)), _LATIN_LANGUAGES)


@cache
def _detector() -> LanguageDetector:
    spoken = [language for language in Language.all() if language.iso_code_639_1.name.lower() in LANGUAGES]
    return LanguageDetectorBuilder.from_languages(*spoken).build()
