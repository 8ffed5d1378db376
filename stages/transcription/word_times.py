"""Word times corrected by voice activity: no word begins before the voice does, or ends after it.

Whisper gets the voiced parts of a song joined together, each with 0.4 s of padding around it, and attributes the
padding to the first and the last word of a part.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from faster_whisper.transcribe import Segment, Word
from faster_whisper.vad import VadOptions, get_speech_timestamps

from stages.signal.voice_activity import RATE_HZ

_MIN_VOICE_MS = 100
_MIN_PAUSE_MS = 300
_MAX_SHIFT_S = 0.6  # slightly more than the padding; a word further off is a quiet one that the detector missed


def voice_times(stem: np.ndarray, threshold: float) -> list[tuple[float, float]]:
    """Spans of voice in seconds, without padding, in a mono vocal stem [samples] at 16 kHz."""
    options = VadOptions(
        threshold=threshold,
        min_speech_duration_ms=_MIN_VOICE_MS,
        min_silence_duration_ms=_MIN_PAUSE_MS,
        speech_pad_ms=0,
    )
    return [(s["start"] / RATE_HZ, s["end"] / RATE_HZ) for s in get_speech_timestamps(stem, options)]


def settle(segments: Sequence[Segment], voice: Sequence[tuple[float, float]]) -> list[Segment]:
    """Segments whose words, and they themselves, begin and end where the voice does.

    Args:
        segments: Whisper's segments, with words.
        voice: see `voice_times`.
    """
    return [_settled(segment, voice) for segment in segments]


def _settled(segment: Segment, voice: Sequence[tuple[float, float]]) -> Segment:
    if not segment.words:
        return segment
    words = [_settled_word(word, voice) for word in segment.words]
    return replace(segment, words=words, start=words[0].start, end=max(word.end for word in words))


def _settled_word(word: Word, voice: Sequence[tuple[float, float]]) -> Word:
    """A word that the voice partly covers is trimmed to the voice; others stay as they are."""
    after = bisect_right(voice, word.start, key=lambda span: span[1])  # the first span that ends after it begins
    if after == len(voice) or voice[after][0] >= word.end:
        return word
    start = max(word.start, voice[after][0])
    last = bisect_right(voice, word.end, key=lambda span: span[0]) - 1  # the last one that begins before it ends
    end = min(word.end, voice[last][1])
    start = start if start - word.start <= _MAX_SHIFT_S else word.start
    end = end if word.end - end <= _MAX_SHIFT_S else word.end
    return replace(word, start=start, end=max(end, start))
