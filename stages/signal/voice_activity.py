"""Where somebody sings or speaks on a vocal stem: Silero VAD v6, which ships inside faster-whisper."""

from typing import Any

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

from stages import pcm

RATE_HZ = 16_000
THRESHOLD = 0.3  # Silero learnt speech; held notes score lower than the 0.5 usual for it

_MIN_VOICE_MS = 250
_MIN_PAUSE_MS = 500  # a breath does not end a span
_PADDING_MS = 100

_SEGMENT_S = 10
_MIN_SEGMENT_S = 2  # a shorter rest says little; it counts only when it is all there is


def voiced_spans(stem: np.ndarray, threshold: float = THRESHOLD) -> list[slice]:
    """Spans of samples with voice in a mono vocal stem [samples] at RATE_HZ.

    Not for a full mix: the detector hears little but noise in one.
    """
    options = VadOptions(
        threshold=threshold,
        min_speech_duration_ms=_MIN_VOICE_MS,
        min_silence_duration_ms=_MIN_PAUSE_MS,
        speech_pad_ms=_PADDING_MS,
    )
    return [slice(span["start"], span["end"]) for span in get_speech_timestamps(stem, options)]


def voiced_segments(stem: Any, rate_hz: int) -> list[np.ndarray]:
    """The voiced parts of a vocal stem, joined and cut into pieces of 10 s; the last one is shorter.

    Args:
        stem: canonical PCM, any buffer.
        rate_hz: of the pieces.

    Returns:
        Mono float32 [samples] each; none for a stem without a voice.
    """
    heard = pcm.mono(stem, RATE_HZ)
    audio = heard if rate_hz == RATE_HZ else pcm.mono(stem, rate_hz)
    spans = [slice(_at(span.start, rate_hz), _at(span.stop, rate_hz)) for span in voiced_spans(heard)]
    voiced = np.concatenate([audio[:0], *(audio[span] for span in spans)])
    length = _SEGMENT_S * rate_hz
    pieces = [voiced[start : start + length] for start in range(0, len(voiced), length)]
    return [piece for piece in pieces if len(piece) >= _MIN_SEGMENT_S * rate_hz] or pieces


def _at(sample: int, rate_hz: int) -> int:
    return sample * rate_hz // RATE_HZ
