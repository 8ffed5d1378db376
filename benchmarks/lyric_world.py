"""Synthetic songs: any number of distinct lyrics, of real words in eight languages.

Words are the 20,000 most frequent of a language (wordfreq), drawn by their frequency; a song has 3 to 5 verses of four
lines and a chorus of four lines that is sung three times, a line has 4 to 9 words. One line in five is a phrase that
many songs share. The IPA of a word is computed once; a line's IPA is that of its words.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np
from wordfreq import get_frequency_dict

from stages.matching.library import LyricSong
from stages.matching.phone_classes import sound_classes
from stages.text.ipa import to_ipa
from stages.text.lyric_text import LyricLine

LANGUAGES = ("en", "es", "fr", "de", "zh", "ja", "ko", "ru")
UNSPACED = frozenset({"zh", "ja"})
_WORDS = 20_000
_PHRASES = 5_000
_SHARED = 0.2


@dataclass(frozen=True)
class Speech:
    """The words of one language, most common first.

    Attributes:
        words: spelling.
        phones: IPA without spaces.
        until: cumulative frequency.
        alike: for a word with any, the words that sound alike (the same string of sound classes).
        phrases: lines that many songs share, as words.
    """

    code: str
    words: list[str]
    phones: list[str]
    until: np.ndarray
    alike: dict[int, list[int]]
    phrases: list[np.ndarray]

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Words by their frequency."""
        return np.searchsorted(self.until, rng.random(count) * self.until[-1])

    def text(self, line: np.ndarray) -> str:
        """A line in written form."""
        return ("" if self.code in UNSPACED else " ").join(self.words[word] for word in line)

    def ipa(self, line: np.ndarray) -> str:
        """A line's phones without spaces."""
        return "".join(self.phones[word] for word in line)


@cache
def speech(code: str) -> Speech:
    """The words of a language, with their IPA."""
    frequencies = get_frequency_dict(code, wordlist="best")
    listed = [(word, share) for word, share in frequencies.items() if word.isalpha()][: int(_WORDS * 1.2)]
    ipa = to_ipa([word for word, _ in listed], code)
    kept = [(word, share, phones.replace(" ", "")) for (word, share), phones in zip(listed, ipa, strict=True) if phones]
    kept = kept[:_WORDS]
    by_sound = defaultdict(list)
    for number, (_, _, phones) in enumerate(kept):
        by_sound[sound_classes(phones)].append(number)
    alike = {n: [m for m in group if m != n] for group in by_sound.values() if len(group) > 1 for n in group}
    made = Speech(code, [w for w, _, _ in kept], [p for _, _, p in kept], np.cumsum([s for _, s, _ in kept]), alike, [])
    rng = np.random.default_rng(sum(map(ord, code)))
    made.phrases.extend(made.draw(rng, int(rng.integers(4, 8))) for _ in range(_PHRASES))
    return made


def lyrics(number: int) -> tuple[str, list[np.ndarray]]:
    """The language and the lines of song `number`, each a row of words; the same every time."""
    rng = np.random.default_rng(number)
    code = LANGUAGES[number % len(LANGUAGES)]
    tongue = speech(code)

    def stanza() -> list[np.ndarray]:
        return [
            tongue.phrases[int(rng.integers(_PHRASES))]
            if rng.random() < _SHARED
            else tongue.draw(rng, int(rng.integers(4, 10)))
            for _ in range(4)
        ]

    chorus, verses = stanza(), [stanza() for _ in range(int(rng.integers(3, 6)))]
    lines = [line for verse in verses[:3] for line in (*verse, *chorus)]
    return code, lines + [line for verse in verses[3:] for line in verse]


def song(number: int) -> LyricSong:
    """Song `number` as in a library."""
    code, lines = lyrics(number)
    tongue = speech(code)
    return LyricSong(
        f"song-{number:07d}",
        [LyricLine(tongue.text(line)) for line in lines],
        [tongue.ipa(line) for line in lines],
        title=f"LyricSong {number}",
        artist=code,
        license="CC0-1.0",
    )


def noisy(code: str, lines: list[np.ndarray], share: float, rng: np.random.Generator) -> list[np.ndarray]:
    """The words with a share of them substituted (half of it), dropped, or followed by another (a quarter each)."""
    tongue = speech(code)
    heard = []
    for line in lines:
        words: list[int] = []
        for word in line.tolist():
            fate = rng.random() / share if share else 1.0
            if fate >= 1.0:
                words.append(word)
            elif fate < 0.5:
                words += tongue.draw(rng, 1).tolist()
            elif fate < 0.75:
                words += [word, *tongue.draw(rng, 1).tolist()]
        heard.append(np.array(words, int))
    return heard


def misheard(code: str, lines: list[np.ndarray], share: float, rng: np.random.Generator) -> list[np.ndarray]:
    """The words with a share of them replaced by a word that sounds alike, where the language has one."""
    alike = speech(code).alike
    return [
        np.array([rng.choice(alike[w]) if w in alike and rng.random() < share else w for w in line.tolist()], int)
        for line in lines
    ]


def part(lines: list[np.ndarray], share: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Consecutive lines that make up a share of the song."""
    count = max(1, round(share * len(lines)))
    start = int(rng.integers(len(lines) - count + 1))
    return lines[start : start + count]
