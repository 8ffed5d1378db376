"""Alignment of lyric lines with the transcribed ("heard") words, by their phones: which lines were sung, and when.

Dynamic programming over (lyric line, heard word): a line takes a run of words or none, the order is kept, and words may
stay unexplained (ad libs), so that an excerpt that skips lines still fits the whole song. Any line may be placed again
on words that stay unexplained, for a chorus that the library writes only once.

Similarity is the mean of two edit similarities, of the phones and of their sound classes: replacing a phone by another
one of its class costs half.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from stages.matching.phone_classes import sound_classes

_UNITS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
_SHORTEST, _LONGEST = 0.6, 1.6  # a run of words may have this much of a line's phones


@dataclass(frozen=True)
class Word:
    """A transcribed word: its phones without spaces, its time in seconds, its text, and its segment's number."""

    phones: str
    start_s: float
    end_s: float
    text: str = ""
    segment: int = 0


@dataclass(frozen=True)
class Placed:
    """Where a lyric line was sung: words [first, last), and the similarity 0..1 of the phones."""

    similarity: float
    first: int
    last: int


@dataclass(frozen=True)
class Alignment:
    """Lyrics aligned with transcribed words.

    Attributes:
        lines: a place for every lyric line; None for those that were not sung in order.
        repeats: further places, each with its line's number, in the order they are sung.
        score: mean similarity of the placed lines, weighted by their numbers of phones.
        coverage: share of the transcribed phones that the placed lines explain.
        explained: the number of those phones.
    """

    lines: list[Placed | None]
    repeats: list[tuple[int, Placed]]
    score: float
    coverage: float
    explained: int


def heard_words(segments: Sequence[Mapping[str, Any]], ipa: Sequence[str]) -> list[Word]:
    """Timed phones of a transcript: `ipa` holds the IPA of each segment.

    If a segment's IPA has as many words as were recognised, they are paired; otherwise (Japanese, Chinese, words that
    espeak joins) the phones are divided among the words in proportion to their letters. A segment without word times is
    divided by its letters.
    """
    words: list[Word] = []
    for number, (segment, phones) in enumerate(zip(segments, ipa, strict=True)):
        words += [word for word in _segment_words(segment, phones, number) if word.phones]
    return words


def units_of(text: str) -> list[str]:
    """The words of a text; in scripts without spaces, every character."""
    return _UNITS.findall(text)


def tight(before: str, after: str) -> bool:
    """Whether two words are written without a space between them, because both are in a script without spaces."""
    return all(_UNSPACED.match(sign) for sign in (before[-1:], after[:1]))


def align(lyrics: Sequence[str], words: Sequence[Word], least: float, least_again: float) -> Alignment:
    """Place lyric lines (phones without spaces) among transcribed words.

    Args:
        lyrics: the phones of each line.
        words: see `heard_words`.
        least: least similarity of a line to its place, 0..1.
        least_again: least similarity of a repetition, which is out of order.
    """
    runs = _Runs(words, max(map(len, lyrics), default=0))
    like = {line: runs.like(line, least) for line in set(lyrics)}
    lines = _place(lyrics, like, runs.count, least)
    repeats = _repeats(lyrics, like, [place for place in lines if place], runs.count, least_again)
    placed = [(place, len(line)) for place, line in zip(lines, lyrics, strict=True) if place]
    placed += [(place, len(lyrics[number])) for number, place in repeats]
    weight = sum(phones for _, phones in placed)
    explained = sum(runs.length(place.first, place.last) for place, _ in placed)
    return Alignment(
        lines=lines,
        repeats=repeats,
        score=sum(place.similarity * phones for place, phones in placed) / weight if weight else 0.0,
        coverage=explained / runs.offsets[-1] if runs.offsets[-1] else 0.0,
        explained=explained,
    )


class _Runs:
    """All runs of consecutive words that could be a line, by their first word."""

    def __init__(self, words: Sequence[Word], longest_line: int) -> None:
        self.count = len(words)
        self.offsets = list(accumulate((len(word.phones) for word in words), initial=0))
        text = "".join(word.phones for word in words)
        self.bounds = [
            (first, last)
            for first in range(self.count)
            for last in range(first + 1, bisect_right(self.offsets, self.offsets[first] + _LONGEST * longest_line))
        ]
        self.phones = [text[self.offsets[first] : self.offsets[last]] for first, last in self.bounds]
        self.classes = [sound_classes(phones) for phones in self.phones]
        self.lengths = np.array([len(phones) for phones in self.phones])

    def length(self, first: int, last: int) -> int:
        return self.offsets[last] - self.offsets[first]

    def like(self, line: str, least: float) -> list[Placed]:
        """Runs with a similarity to a line of at least `least`, in the order of their last word."""
        near = np.flatnonzero((self.lengths >= _SHORTEST * len(line)) & (self.lengths <= _LONGEST * len(line)))
        if not len(near):
            return []
        by_class = _similarities(sound_classes(line), [self.classes[index] for index in near], least)
        possible = by_class >= least  # no less than the similarity of the phones themselves
        near, by_class = near[possible], by_class[possible]
        scores = (_similarities(line, [self.phones[index] for index in near], 0.0) + by_class) / 2
        found = [
            Placed(float(score), *self.bounds[index])
            for index, score in zip(near, scores, strict=True)
            if score >= least
        ]
        return sorted(found, key=lambda place: (place.last, place.first))


def _similarities(text: str, others: Sequence[str], least: float) -> np.ndarray:
    """Edit similarities 0..1; those below `least` are 0."""
    if not others:
        return np.empty(0)
    return cdist([text], others, scorer=Levenshtein.normalized_similarity, score_cutoff=least)[0]


def _place(
    lyrics: Sequence[str], like: Mapping[str, Sequence[Placed]], count: int, least: float
) -> list[Placed | None]:
    """Best monotone assignment; a place gains its phones times its similarity in excess of chance."""
    before = np.zeros(count + 1)  # best gain of the lines so far within the first j words
    chosen: list[list[Placed | None]] = []
    for line in lyrics:
        gain = before.copy()
        choice: list[Placed | None] = [None] * (count + 1)
        for place in like[line]:
            value = before[place.first] + len(line) * (place.similarity - 0.9 * least)
            if value > gain[place.last]:
                gain[place.last], choice[place.last] = value, place
        before = _carry(gain, choice)
        chosen.append(choice)
    return _trace(chosen, count)


def _repeats(
    lyrics: Sequence[str], like: Mapping[str, Sequence[Placed]], taken: Sequence[Placed], count: int, least: float
) -> list[tuple[int, Placed]]:
    """Lines on words that are still free, in any order: the disjoint places that explain the most phones."""
    used = np.zeros(count + 1, int)
    for place in taken:
        used[place.first + 1 : place.last + 1] = 1
    used_before = used.cumsum()
    first_of = {line: number for number, line in reversed(list(enumerate(lyrics)))}
    ending: dict[int, list[tuple[float, int, Placed]]] = {}
    for line, number in first_of.items():
        for place in like[line]:
            if place.similarity >= least and used_before[place.last] == used_before[place.first]:
                gain = len(line) * (place.similarity - 0.9 * least)
                ending.setdefault(place.last, []).append((gain, number, place))
    best, chosen = [0.0], [None]  # type: tuple[list[float], list[tuple[int, Placed] | None]]
    for last in range(1, count + 1):
        options = [(best[place.first] + gain, number, place) for gain, number, place in ending.get(last, ())]
        top = max(options, key=lambda option: option[0], default=None)
        better = top is not None and top[0] > best[-1]
        best.append(top[0] if top and better else best[-1])
        chosen.append((top[1], top[2]) if top and better else None)
    repeats: list[tuple[int, Placed]] = []
    last = count
    while last:
        found = chosen[last]
        repeats += [found] if found else []
        last = found[1].first if found else last - 1
    return repeats[::-1]


def _carry(gain: np.ndarray, choice: list[Placed | None]) -> np.ndarray:
    """Let words stay unexplained: a gain carries over to every later word until there is a better one."""
    for j in range(1, len(gain)):
        if gain[j - 1] > gain[j]:
            gain[j], choice[j] = gain[j - 1], choice[j - 1]
    return gain


def _trace(chosen: list[list[Placed | None]], count: int) -> list[Placed | None]:
    places: list[Placed | None] = []
    j = count
    for choice in reversed(chosen):
        place = choice[j]
        places.append(place)
        j = place.first if place else j
    return places[::-1]


def _segment_words(segment: Mapping[str, Any], ipa: str, number: int) -> list[Word]:
    spoken = ipa.split()
    words = segment["words"] or _spread(segment)
    if len(words) != len(spoken):
        spoken = _share_out("".join(spoken), [len(word["text"].strip()) for word in words])
    return [
        Word(phones, word["start_s"], word["end_s"], word["text"].strip(), number)
        for phones, word in zip(spoken, words, strict=True)
    ]


def _spread(segment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Words of a segment that has no word times; every character of a text without spaces is one."""
    texts = units_of(segment["text"])
    start_s, length_s = segment["start_s"], segment["end_s"] - segment["start_s"]
    offsets = list(accumulate(map(len, texts), initial=0))
    second = [start_s + length_s * offset / max(1, offsets[-1]) for offset in offsets]
    return [{"text": text, "start_s": second[i], "end_s": second[i + 1]} for i, text in enumerate(texts)]


def _share_out(phones: str, letters: Sequence[int]) -> list[str]:
    """Cut phones into one piece per word, in proportion to the words' numbers of letters."""
    total = max(1, sum(letters))
    cuts = [round(len(phones) * offset / total) for offset in accumulate(letters, initial=0)]
    cuts[-1] = len(phones)
    return [phones[start:end] for start, end in pairwise(cuts)]
