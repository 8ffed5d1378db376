"""What became of every line: a song's lines and the transcribed words in the order sung, each with a verdict."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np

from schemas.lyric_verdicts import CANONICAL, EXTRA, HEARD, MISSING
from stages.matching.alignment import Alignment, Placed, Word, tight, units_of
from stages.matching.library import LyricSong

_LEAST_EXTRA = 4  # phones; fewer are the remainder of a word that a line did not cover


def matched_lines(
    song: LyricSong, alignment: Alignment, words: Sequence[Word], canonical_similarity: float
) -> list[dict[str, Any]]:
    """The lines of a song that was found, as entries of the `lyrics` column.

    A line that is sung several times has an entry for each time; missing lines are where they would have been sung.
    """
    entries: list[tuple[float, dict[str, Any]]] = []
    at_s = 0.0
    for number, place in enumerate(alignment.lines):
        if place is None:
            entries.append((at_s, _missing(song, number)))
            continue
        at_s = words[place.first].start_s
        entries.append((at_s, _sung(song, number, place, words, canonical_similarity)))
    entries += [
        (words[place.first].start_s, _sung(song, number, place, words, canonical_similarity))
        for number, place in alignment.repeats
    ]
    entries += [(line["start_s"], line) for line in _extra(alignment, words)]
    return [line for _, line in sorted(entries, key=lambda entry: entry[0])]


def transcript_lines(segments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a song that is in no library: the transcript's segments."""
    return [
        _line(
            HEARD,
            segment["text"].strip(),
            (segment["start_s"], segment["end_s"]),
            words=[{**word, "text": word["text"].strip()} for word in segment["words"] or ()],
        )
        for segment in segments
    ]


def word_times(text: str, heard: Sequence[Word]) -> list[dict[str, Any]]:
    """Times of a line's words, interpolated from the transcribed words that it is placed on."""
    units = units_of(text)
    lengths = [sum(map(str.isalnum, unit)) for unit in units]
    shares = np.array(list(accumulate(lengths, initial=0))) / max(1, sum(lengths))
    phones = list(accumulate((len(word.phones) for word in heard), initial=0))
    offsets = np.array([offset for pair in pairwise(phones) for offset in pair]) / max(1, phones[-1])
    times = [time for word in heard for time in (word.start_s, word.end_s)]
    # Time jumps where one word ends and the next begins: ends are read before the jump, starts after it.
    steps = np.arange(len(offsets)) * 1e-9
    starts = np.interp(shares[:-1] + 1e-6, offsets + steps, times)
    ends = np.interp(shares[1:] - 1e-6, offsets + steps, times)
    return [
        {"start_s": float(start), "end_s": float(max(start, end)), "text": unit}
        for unit, start, end in zip(units, starts, ends, strict=True)
    ]


def _missing(song: LyricSong, number: int) -> dict[str, Any]:
    text = song.lines[number].text
    return _line(MISSING, text, None, score=0.0, library_line=number, library_text=text)


def _sung(
    song: LyricSong, number: int, place: Placed, words: Sequence[Word], canonical_similarity: float
) -> dict[str, Any]:
    text, heard = song.lines[number].text, words[place.first : place.last]
    canonical = place.similarity >= canonical_similarity
    return _line(
        CANONICAL if canonical else HEARD,
        text if canonical else _text(heard),
        (heard[0].start_s, heard[-1].end_s),
        score=place.similarity,
        words=word_times(text, heard) if canonical else [_word(word) for word in heard],
        library_line=number,
        library_text=text,
    )


def _extra(alignment: Alignment, words: Sequence[Word]) -> Iterator[dict[str, Any]]:
    """Words that no line covers, as one line for each run of them within a segment."""
    places = [*filter(None, alignment.lines), *(place for _, place in alignment.repeats)]
    taken = {number for place in places for number in range(place.first, place.last)}
    for (free, _), run in groupby(enumerate(words), lambda item: (item[0] not in taken, item[1].segment)):
        heard = [word for _, word in run]
        if free and sum(len(word.phones) for word in heard) >= _LEAST_EXTRA:
            time = (heard[0].start_s, heard[-1].end_s)
            yield _line(EXTRA, _text(heard), time, words=[_word(word) for word in heard])


def _text(words: Sequence[Word]) -> str:
    texts = [word.text for word in words]
    return "".join(text if tight(text, after) else f"{text} " for text, after in pairwise([*texts, ""])).rstrip()


def _word(word: Word) -> dict[str, Any]:
    return {"start_s": word.start_s, "end_s": word.end_s, "text": word.text}


def _line(verdict: str, text: str, time: tuple[float, float] | None, **more: Any) -> dict[str, Any]:
    start_s, end_s = time or (None, None)
    empty: dict[str, Any] = {"score": None, "words": [], "library_line": None, "library_text": None}
    return {"start_s": start_s, "end_s": end_s, "text": text, "verdict": verdict, **empty, **more}
