"""What happens when in a song: beats, sections, sung lines. All times are seconds from the start of the song."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from stages.matching.alignment import tight
from stages.text.lyric_text import LyricLine, heard_segments, parse

_UNTIMED = {"start_s": None, "end_s": None}


def timeline(row: Mapping[str, Any]) -> dict[str, Any]:
    """The timeline of a row.

    Returns:
        `duration_s` (None if unknown), `beats_s`, `downbeats_s`, `sections` [{start_s, end_s, label}] and `lines`
        [{start_s, end_s, text, verdict, words: [{start_s, end_s, text}]}] from the lyrics if there are any, else from
        the transcript, else from the lyrics that came with the song. A line without a position has null times.
    """
    rhythm = row.get("rhythm") or {}
    return {
        "duration_s": _time((row.get("audio") or {}).get("duration_s")),
        "beats_s": _times(rhythm.get("beats_s")),
        "downbeats_s": _times(rhythm.get("downbeats_s")),
        "sections": [
            {**_span(item), "label": item.get("label") or "?"}
            for item in (row.get("sections") or {}).get("items") or ()
            if _is_placed(item)
        ],
        "lines": _lines(row),
    }


def within(whole: Mapping[str, Any], start_s: float, length_s: float) -> dict[str, Any]:
    """The part of a timeline that an excerpt covers; times still count from the start of the song.

    Lines before and after it are kept, without times, for reading.
    """
    end_s = start_s + length_s
    return {
        "duration_s": whole["duration_s"],
        "beats_s": [time for time in whole["beats_s"] if start_s <= time < end_s],
        "downbeats_s": [time for time in whole["downbeats_s"] if start_s <= time < end_s],
        "sections": [
            {
                **section,
                "start_s": max(section["start_s"], start_s),
                "end_s": min(section["end_s"], end_s),
            }
            for section in whole["sections"]
            if _overlaps(section, start_s, end_s)
        ],
        "lines": [
            line if _overlaps(line, start_s, end_s) else {**line, **_UNTIMED, "words": []} for line in whole["lines"]
        ],
    }


def _lines(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    sung = (row.get("lyrics") or {}).get("lines") or ()
    if sung:
        return [_line(line, line.get("verdict")) for line in sung]
    if heard := heard_segments({"segments": (), **(row.get("transcript") or {})}):
        return [_line(segment, "heard") for segment in heard]
    return [_line(line, "given") for line in _given(parse(row.get("given_lyrics") or ""))]


def _given(lines: list[LyricLine]) -> Iterator[dict[str, Any]]:
    """Lines of an LRC, each lasting until the next one begins."""
    for line, after in pairwise([*lines, LyricLine("")]):
        end_s = after.start_s if after.start_s is not None else line.start_s
        yield {"start_s": line.start_s, "end_s": end_s, "text": line.text}


def _line(line: Mapping[str, Any], verdict: str | None) -> dict[str, Any]:
    placed = _is_placed(line)
    words = [word for word in line.get("words") or () if _is_placed(word)] if placed else []
    return {
        **(_span(line) if placed else _UNTIMED),
        "text": (line.get("text") or "").strip(),
        "verdict": verdict,
        "words": list(_words(words)),
    }


def _words(words: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Words, each with the gap to the next one: a space, or nothing in scripts such as Japanese."""
    texts = [(word.get("text") or "").strip() for word in words]
    for word, (text, after) in zip(words, pairwise([*texts, ""]), strict=True):
        yield {**_span(word), "text": text, "gap": "" if tight(text, after) else " "}


def _span(item: Mapping[str, Any]) -> dict[str, float]:
    return {"start_s": round(item["start_s"], 3), "end_s": round(item["end_s"], 3)}


def _is_placed(item: Mapping[str, Any]) -> bool:
    return _time(item.get("start_s")) is not None and _time(item.get("end_s")) is not None


def _overlaps(span: Mapping[str, Any], start_s: float, end_s: float) -> bool:
    return span["start_s"] is not None and span["start_s"] < end_s and span["end_s"] > start_s


def _times(values: Iterable[float | None] | None) -> list[float]:
    return [round(value, 3) for value in values or () if _time(value) is not None and value is not None]


def _time(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None
