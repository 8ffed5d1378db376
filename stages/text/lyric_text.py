"""Plain or LRC lyrics, parsed into clean lines."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LONGEST_LINE = 160  # characters; lyrics without line breaks are split, or aligning them would take forever
INSTRUMENTAL = "[inst]"  # the text of transcript and lyrics where nobody sings

_TIME = re.compile(r"\[(\d{1,3}):(\d{1,2}(?:[.:]\d{1,3})?)\]", re.ASCII)
_WORD_TIME = re.compile(r"<\d{1,3}:\d{1,2}(?:[.:]\d{1,3})?>", re.ASCII)
_OFFSET = re.compile(r"\[offset:\s*([+-]?\d{1,9})\s*\]", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r"\[[^\]]*\]\s*$")  # [verse], [ar:Somebody]


@dataclass(frozen=True)
class LyricLine:
    """A sung line and, from an LRC, its start in seconds."""

    text: str
    start_s: float | None = None


def parse(lyrics: str) -> list[LyricLine]:
    """The sung lines of plain or LRC lyrics in the order they are sung, without structure tags and metadata.

    An LRC line with several times is sung at each of them; a positive [offset:] (milliseconds) makes lines earlier.
    """
    offset = _OFFSET.search(lyrics)
    earlier_s = int(offset[1]) / 1000 if offset else 0.0
    lines = [line for written in lyrics.splitlines() for line in _lines(written, earlier_s)]
    if all(line.start_s is not None for line in lines):
        lines.sort(key=lambda line: line.start_s or 0.0)
    return lines


def heard_segments(transcript: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Segments of a transcript; none for an instrumental."""
    text = (transcript.get("text") or "").strip()
    return () if text in {"", INSTRUMENTAL} else transcript["segments"] or ()


def _lines(written: str, earlier_s: float) -> list[LyricLine]:
    written = written.strip().removeprefix("\ufeff")
    times = []
    while time := _TIME.match(written):
        times.append(int(time[1]) * 60 + float(time[2].replace(":", ".")) - earlier_s)
        written = written[time.end() :].lstrip()
    text = " ".join(_WORD_TIME.sub("", written).split())
    if not text or _TAG.match(text):
        return []
    if times:
        return [LyricLine(text, max(0.0, time)) for time in times]
    return [LyricLine(part) for part in textwrap.wrap(text, _LONGEST_LINE)]
