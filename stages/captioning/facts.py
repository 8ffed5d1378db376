"""What a caption may say about a song: the measured columns put into words."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_MAX = {"genre": 2, "instrument": 3, "mood": 2, "voice": 1}
_MIN_KEY_STRENGTH = 0.5
_MIN_LIVE = 0.5
# Upper bound in BPM, the word for it, a synonym.
_TEMPI = ((80, "slow", "downtempo"), (110, "moderate", "mid-tempo"), (140, "upbeat", "lively"), (1e9, "fast", "rapid"))
_LANGUAGES = {
    "ar": "Arabic",
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "hu": "Hungarian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "zh": "Chinese",
}


@dataclass(frozen=True)
class CaptionFacts:
    """Words for what was measured, empty or None where nothing was. Captions claim nothing else."""

    genres: tuple[str, ...] = ()
    instruments: tuple[str, ...] = ()
    moods: tuple[str, ...] = ()
    voice: str | None = None  # only for songs with vocals
    sung: bool | None = None
    language: str | None = None  # of the lyrics
    bpm: int | None = None
    tempo: str | None = None
    meter: str | None = None
    key: str | None = None
    parts: tuple[str, ...] = ()
    length: str | None = None
    live: bool = False


def gather(columns: Mapping[str, Any], synonyms: bool = False) -> CaptionFacts:
    """The facts in a row's columns, in the usual words or in their synonyms.

    Tags of one class count in the order of their scores. A key counts from strength 0.5, a live recording from
    probability 0.5. Tempo words: slow below 80 BPM, moderate below 110, upbeat below 140, fast above.
    """
    rhythm, key, transcript = (columns.get(name) or {} for name in ("rhythm", "key", "transcript"))
    sung = (columns.get("vocals") or {}).get("has_vocals")
    bpm = rhythm.get("bpm")
    length_s = (columns.get("audio") or {}).get("duration_s")
    tags = (columns.get("tags") or {}).get("names") or []
    voices = tag_words(tags, "voice", synonyms) if sung else ()
    return CaptionFacts(
        genres=tag_words(tags, "genre", synonyms),
        instruments=tag_words(tags, "instrument", synonyms),
        moods=tag_words(tags, "mood", synonyms),
        voice=voices[0] if voices else None,
        sung=sung,
        language=_LANGUAGES.get(transcript.get("language") or "") if sung and transcript.get("text") else None,
        bpm=round(bpm) if bpm else None,
        tempo=_tempo(bpm, synonyms) if bpm else None,
        meter=f"{rhythm['time_signature']}/4" if rhythm.get("time_signature") else None,
        key=f"{key['tonic']} {key['mode']}" if (key.get("strength") or 0) >= _MIN_KEY_STRENGTH else None,
        parts=_parts((columns.get("sections") or {}).get("items") or []),
        length=_length(length_s) if length_s else None,
        live=((columns.get("events") or {}).get("live") or 0) >= _MIN_LIVE,
    )


@cache
def tag_classes() -> dict[str, dict[str, list[str]]]:
    """Class -> tag -> its words; the file says where the tags come from."""
    text = (Path(__file__).parents[1] / "data" / "tag_classes.yaml").read_text(encoding="utf-8")
    classes: dict[str, dict[str, list[str]]] = yaml.safe_load(text)
    return classes


def tag_words(tags: list[str], kind: str, synonyms: bool) -> tuple[str, ...]:
    """Words of the class for the strongest tags, each once."""
    words = tag_classes()[kind]
    chosen = dict.fromkeys(words[tag][-1 if synonyms else 0] for tag in tags if tag in words)
    return tuple(chosen)[: _MAX[kind]]


def _tempo(bpm: float, synonyms: bool) -> str:
    _, word, other = next(tempo for tempo in _TEMPI if bpm < tempo[0])
    return other if synonyms else word


def _length(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _parts(items: list[dict[str, Any]]) -> tuple[str, ...]:
    """Labels in order, with consecutive duplicates collapsed."""
    labels = [item["label"] for item in items]
    return tuple(label for i, label in enumerate(labels) if i == 0 or label != labels[i - 1])
