"""Whether a song is sung, rapped or instrumental."""

from collections.abc import Mapping
from typing import Any

_RAP_WORDS_PER_S = 3.0  # rap moves at four to seven syllables a second, a sung pop melody at two to three
_RAP_TAG = "hip-hop"
_TAGGED_RAP_WORDS_PER_S = 2.2  # enough where the tagger hears hip-hop as well
_MIN_WORDS = 10
_WITHOUT_SPACES = frozenset(["ja", "lo", "my", "th", "yue", "zh"])  # Whisper's "words" are pieces of words there


def vocal_delivery(columns: Mapping[str, Any]) -> str | None:
    """One of "instrumental", "sung" and "rap", or None where it was not measured.

    Rap is 3 or more recognised words per second of transcribed segments, or 2.2 if "hip-hop" is among the tags. Fewer
    than ten words say nothing about the pace, nor do the words of languages written without spaces.
    """
    vocals = columns.get("vocals")
    if not vocals or vocals.get("has_vocals") is None:
        return None
    if not vocals["has_vocals"]:
        return "instrumental"
    if (columns.get("transcript") or {}).get("language") in _WITHOUT_SPACES:
        return None
    words_per_s = _words_per_s((columns.get("transcript") or {}).get("segments") or [])
    if words_per_s is None:
        return None
    tagged = _RAP_TAG in ((columns.get("tags") or {}).get("names") or [])
    return "rap" if words_per_s >= (_TAGGED_RAP_WORDS_PER_S if tagged else _RAP_WORDS_PER_S) else "sung"


def _words_per_s(segments: list[dict[str, Any]]) -> float | None:
    words = [word for segment in segments for word in segment.get("words") or []]
    voiced_s = sum(segment["end_s"] - segment["start_s"] for segment in segments)
    return len(words) / voiced_s if len(words) >= _MIN_WORDS and voiced_s > 0 else None
