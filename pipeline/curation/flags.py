"""Flags: warnings on rows whose columns contradict each other. They reject no row; `inspect` counts them."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from schemas import columns

_SAME_TEMPO = 0.04  # maximum relative difference of two equal tempi, as in MIREX
_TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_OCTAVES = (2.0, 3.0, 0.5, 1 / 3)
_STATED_BPM = re.compile(r"(\d{2,3}(?:\.\d+)?)\s*-?\s*(?:bpm|beats per minute)", re.IGNORECASE)
# Tempo words with their plausible range in BPM.
_TEMPO_WORDS = {
    "slow": (0.0, 110.0),
    "slow-paced": (0.0, 110.0),
    "downtempo": (0.0, 115.0),
    "mid-tempo": (75.0, 145.0),
    "upbeat": (90.0, 999.0),
    "uptempo": (95.0, 999.0),
    "fast": (105.0, 999.0),
    "fast-paced": (105.0, 999.0),
    "rapid": (115.0, 999.0),
}
_TEMPO_WORD = re.compile(r"(?<![\w-])(" + "|".join(sorted(_TEMPO_WORDS, key=len, reverse=True)) + r")(?![\w-])", re.I)
_TEXTS = ("simplified", "expanded", "descriptive", "synonyms")
_LYRIC_LINE = re.compile(r"^\[([a-z]{2})(?:-[a-z]{2})?\](?!\[)", re.MULTILINE)

Row = Mapping[str, Any]


def with_flags(rows: pa.Table) -> pa.Table:
    """The rows with `flags` extended by `disagreements` of each row."""
    read = [
        name
        for name in ("rhythm", "key", "sections", "caption", "transcript", "lyric_tokens")
        if name in rows.column_names
    ]
    flagged = [[*(row.pop("flags") or []), *disagreements(row)] for row in rows.select(["flags", *read]).to_pylist()]
    return rows.set_column(rows.column_names.index("flags"), "flags", pa.array(flagged, columns.FLAGS))


def disagreements(row: Row) -> list[str]:
    """Flags for contradictions between the columns of a row; missing and null columns contradict nothing.

    - `bpm_octave`: All-In-One's tempo is 1/3, 1/2, 2 or 3 times that of the rhythm stage; `bpm`: it differs otherwise.
    - `key_relative`: one method detects a major key and the other its relative minor; `key`: the keys have different
      notes.
    - `caption_bpm`: a caption states a BPM that differs from the measured one. `caption_tempo`: its tempo words do not
      match the measured BPM.
    - `caption_fallback`: the captioning model's answer could not be used.
    - `lyric_language`: most lines of the lyrics are in another language than the transcript's.
    """
    return [flag for check in _CHECKS for flag in check(row)]


def _tempo_by_two_models(row: Row) -> Iterator[str]:
    measured, other = _get(row, "rhythm", "bpm"), _get(row, "sections", "bpm")
    if measured and other and not _near(other / measured, 1.0):
        yield "bpm_octave" if any(_near(other / measured, octave) for octave in _OCTAVES) else "bpm"


def _key_by_two_methods(row: Row) -> Iterator[str]:
    first, second = ((_get(row, "key", f"{which}tonic"), _get(row, "key", f"{which}mode")) for which in ("", "second_"))
    if all((*first, *second)) and first != second:
        yield "key_relative" if _scale(*first) == _scale(*second) else "key"


def _tempo_in_words(row: Row) -> Iterator[str]:
    caption, bpm = row.get("caption") or {}, _get(row, "rhythm", "bpm")
    if not bpm:
        return
    texts = [*(caption.get(text) for text in _TEXTS), (caption.get("analysis") or {}).get("tempo")]
    caption_text = ". ".join(text for text in texts if text)
    if any(not _near(float(stated) / bpm, 1.0) for stated in _STATED_BPM.findall(caption_text)):
        yield "caption_bpm"
    bounds = [_TEMPO_WORDS[word.lower()] for word in _TEMPO_WORD.findall(caption_text)]
    if any(not low <= bpm <= high for low, high in bounds):
        yield "caption_tempo"


def _caption_not_used(row: Row) -> Iterator[str]:
    if _get(row, "caption", "failure"):
        yield "caption_fallback"


def _language_of_lyrics(row: Row) -> Iterator[str]:
    recognized = _get(row, "transcript", "language")
    written = Counter(_LYRIC_LINE.findall(_get(row, "lyric_tokens", "text") or ""))
    if recognized and written and written.most_common(1)[0][0] != recognized:
        yield "lyric_language"


_CHECKS: tuple[Callable[[Row], Iterator[str]], ...] = (
    _tempo_by_two_models,
    _key_by_two_methods,
    _tempo_in_words,
    _caption_not_used,
    _language_of_lyrics,
)


def _scale(tonic: str, mode: str) -> int:
    """Tonic of the major key with the same notes, in semitones above C (0 to 11)."""
    return (_TONICS.index(tonic) + (3 if mode == "minor" else 0)) % 12


def _near(ratio: float, expected: float) -> bool:
    return abs(ratio / expected - 1) <= _SAME_TEMPO


def _get(row: Row, column: str, name: str) -> Any:
    return (row.get(column) or {}).get(name)
