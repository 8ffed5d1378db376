"""Lyric lines against the heard words, by their phones: which lines were sung, and when.

Dynamic programming over (lyric line, heard word): a line takes a run of words or none, the order is kept, words may
stay unexplained (ad libs, repeats), so that an excerpt in which lines are skipped still fits the whole song.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

_SHORTEST, _LONGEST = 0.6, 1.6  # a run of words may have this much of a line's phones


@dataclass(frozen=True)
class Word:
    """A heard word: its phones without spaces, and its time in seconds."""

    phones: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Placed:
    """A lyric line where it was heard: similarity 0..1 of the phones and words [first, last)."""

    similarity: float
    first: int
    last: int


@dataclass(frozen=True)
class Alignment:
    """Lyrics against heard words.

    Attributes:
        lines: a place for every lyric line; None for those that were not heard.
        score: mean similarity of the placed lines, by their phones.
        coverage: phones of the heard words that the placed lines explain, as a share of all.
        explained: the number of those phones.
    """

    lines: list[Placed | None]
    score: float
    coverage: float
    explained: int


def heard_words(segments: Sequence[Mapping[str, Any]], ipa: Sequence[str]) -> list[Word]:
    """Timed phones of a transcript: `ipa` holds the IPA of each segment.

    Where a segment's IPA has as many words as were recognised, they belong together; else (Japanese, Chinese, words
    that espeak joins) the phones are shared out by the words' letters. A segment without word
    times is divided evenly.
    """
    words: list[Word] = []
    for segment, phones in zip(segments, ipa, strict=True):
        words += [word for word in _segment_words(segment, phones) if word.phones]
    return words


def align(lyrics: Sequence[str], words: Sequence[Word], least: float) -> Alignment:
    """Place lyric lines (phones without spaces) among heard words; a place is at least `least` similar."""
    runs = _Runs(words, max(map(len, lyrics), default=0))
    lines = _place(lyrics, runs, least)
    placed = [(place, len(line)) for place, line in zip(lines, lyrics, strict=True) if place]
    weight = sum(phones for _, phones in placed)
    explained = sum(runs.length(place.first, place.last) for place, _ in placed)
    return Alignment(
        lines=lines,
        score=sum(place.similarity * phones for place, phones in placed) / weight if weight else 0.0,
        coverage=explained / runs.offsets[-1] if runs.offsets[-1] else 0.0,
        explained=explained,
    )


class _Runs:
    """All runs of consecutive words that may be a line, by their first word."""

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
        self.lengths = np.array([len(phones) for phones in self.phones])

    def length(self, first: int, last: int) -> int:
        return self.offsets[last] - self.offsets[first]

    def like(self, line: str, least: float) -> list[Placed]:
        """Runs that are at least `least` similar to a line, in the order of their last word."""
        near = np.flatnonzero((self.lengths >= _SHORTEST * len(line)) & (self.lengths <= _LONGEST * len(line)))
        if not len(near):
            return []
        queries = [self.phones[index] for index in near]
        scores = cdist([line], queries, scorer=Levenshtein.normalized_similarity, score_cutoff=least)[0]
        found = [
            Placed(float(score), *self.bounds[index])
            for index, score in zip(near, scores, strict=True)
            if score >= least
        ]
        return sorted(found, key=lambda place: (place.last, place.first))


def _place(lyrics: Sequence[str], runs: _Runs, least: float) -> list[Placed | None]:
    """Best monotone assignment; a place gains its phones times its similarity beyond what chance reaches."""
    before = np.zeros(runs.count + 1)  # best gain of the lines so far within the first j words
    chosen: list[list[Placed | None]] = []
    for line in lyrics:
        gain = before.copy()
        choice: list[Placed | None] = [None] * (runs.count + 1)
        for place in runs.like(line, least):
            value = before[place.first] + len(line) * (place.similarity - 0.9 * least)
            if value > gain[place.last]:
                gain[place.last], choice[place.last] = value, place
        before = _carry(gain, choice)
        chosen.append(choice)
    return _trace(chosen, runs.count)


def _carry(gain: np.ndarray, choice: list[Placed | None]) -> np.ndarray:
    """Let words stay unexplained: a gain holds for every later word until a better one."""
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


def _segment_words(segment: Mapping[str, Any], ipa: str) -> list[Word]:
    spoken = ipa.split()
    words = segment["words"] or ()
    if not words:
        return _spread(spoken, segment["start_s"], segment["end_s"])
    if len(words) != len(spoken):
        spoken = _share_out("".join(spoken), [len(word["text"].strip()) for word in words])
    return [Word(phones, word["start_s"], word["end_s"]) for phones, word in zip(spoken, words, strict=True)]


def _spread(spoken: Sequence[str], start_s: float, end_s: float) -> list[Word]:
    offsets = list(accumulate(map(len, spoken), initial=0))
    second = [start_s + (end_s - start_s) * offset / max(1, offsets[-1]) for offset in offsets]
    return [Word(phones, second[i], second[i + 1]) for i, phones in enumerate(spoken)]


def _share_out(phones: str, letters: Sequence[int]) -> list[str]:
    """Cut phones into as many pieces as there are words, as long as their letters are many."""
    total = max(1, sum(letters))
    cuts = [round(len(phones) * offset / total) for offset in accumulate(letters, initial=0)]
    cuts[-1] = len(phones)
    return [phones[start:end] for start, end in pairwise(cuts)]
