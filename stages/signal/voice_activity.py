"""Where a vocal stem has singing or speech: Silero VAD v6, which ships with faster-whisper."""

from typing import Any

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

from stages import pcm

RATE_HZ = 16_000
THRESHOLD = 0.3  # Silero was trained on speech; held notes score below its usual 0.5

_MIN_VOICE_MS = 250
_MIN_PAUSE_MS = 500  # a breath does not end a span
_PADDING_MS = 100

_SEGMENT_S = 10
_MIN_SEGMENT_S = 2  # a shorter remainder says little; it counts only if there is nothing else


def voiced_spans(stem: np.ndarray, threshold: float = THRESHOLD) -> list[slice]:
    """Spans of samples with voice in a mono vocal stem [samples] at RATE_HZ.

    Not for a full mix, in which the detector finds little but noise.
    """
    options = VadOptions(
        threshold=threshold,
        min_speech_duration_ms=_MIN_VOICE_MS,
        min_silence_duration_ms=_MIN_PAUSE_MS,
        speech_pad_ms=_PADDING_MS,
    )
    return [slice(span["start"], span["end"]) for span in get_speech_timestamps(stem, options)]


def voiced_segments(stem: Any, rate_hz: int) -> list[np.ndarray]:
    """The voiced parts of a vocal stem, joined and cut into pieces of 10 s; the last one may be shorter.

    Args:
        stem: canonical PCM, any buffer.
        rate_hz: sampling rate of the pieces.

    Returns:
        Mono float32 [samples] each; none for a stem without a voice.
    """
    detected_on = pcm.mono(stem, RATE_HZ)
    audio = detected_on if rate_hz == RATE_HZ else pcm.mono(stem, rate_hz)
    spans = [slice(_at(span.start, rate_hz), _at(span.stop, rate_hz)) for span in voiced_spans(detected_on)]
    voiced = np.concatenate([audio[:0], *(audio[span] for span in spans)])
    length = _SEGMENT_S * rate_hz
    pieces = [voiced[start : start + length] for start in range(0, len(voiced), length)]
    return [piece for piece in pieces if len(piece) >= _MIN_SEGMENT_S * rate_hz] or pieces


def _at(sample: int, rate_hz: int) -> int:
    return sample * rate_hz // RATE_HZ
