"""Where somebody sings or speaks on a vocal stem: Silero VAD v6, which ships inside faster-whisper."""

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

RATE_HZ = 16_000
THRESHOLD = 0.3  # Silero learnt speech; held notes score lower than the 0.5 usual for it

_MIN_VOICE_MS = 250
_MIN_PAUSE_MS = 500  # a breath does not end a span
_PADDING_MS = 100


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
