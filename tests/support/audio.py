"""Audio for tests: signals made of numbers, and files of every format, written with PyAV.

Signals are float32 [channels, frames] in -1..1.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# File name suffix -> codec. Another codec of the same container goes by `write(..., codec=)`, e.g. vorbis in .ogg.
CODECS = {
    ".wav": "pcm_s16le",
    ".aiff": "pcm_s16be",
    ".flac": "flac",
    ".aac": "aac",
    ".mp3": "libmp3lame",
    ".m4a": "aac",
    ".ogg": "libopus",
    ".opus": "libopus",
}
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def tone(hz: float, seconds: float, rate_hz: int = 44_100, channels: int = 2, dbfs: float = -12.0) -> np.ndarray:
    """A sine, the same on every channel, whose peak lies at `dbfs`."""
    wave = 10 ** (dbfs / 20) * np.sin(2 * np.pi * hz * _times(seconds, rate_hz))
    return np.tile(wave, (channels, 1)).astype(np.float32)


def noise(
    seconds: float, rate_hz: int = 44_100, channels: int = 2, dbfs: float = -20.0, seed: int = 0, same: bool = False
) -> np.ndarray:
    """White Gaussian noise with an RMS of `dbfs`; independent channels, or the `same` one on all."""
    frames = _times(seconds, rate_hz).size
    drawn = np.random.default_rng(seed).standard_normal((1 if same else channels, frames))
    loud = 10 ** (dbfs / 20) * np.broadcast_to(drawn, (channels, frames))
    return np.clip(loud, -1.0, 1.0).astype(np.float32)


def clicks(bpm: float, seconds: float, rate_hz: int = 44_100, channels: int = 2, accent_every: int = 4) -> np.ndarray:
    """A click track from time 0 on: 20 ms decaying beeps, every `accent_every`-th one louder and higher."""
    track = np.zeros(_times(seconds, rate_hz).size)
    for beat, start_s in enumerate(np.arange(0.0, seconds, 60.0 / bpm)):
        accent = beat % accent_every == 0
        beep_s = _times(0.02, rate_hz)
        beep = (
            (0.8 if accent else 0.5) * np.sin(2 * np.pi * (1500 if accent else 1000) * beep_s) * np.exp(-beep_s * 150)
        )
        start = round(start_s * rate_hz)
        track[start : start + beep.size] += beep[: track.size - start]
    return np.tile(track, (channels, 1)).astype(np.float32)


def silence(seconds: float, rate_hz: int = 44_100, channels: int = 2) -> np.ndarray:
    """Digital zeros."""
    return np.zeros((channels, _times(seconds, rate_hz).size), dtype=np.float32)


def mix(*signals: np.ndarray) -> np.ndarray:
    """The sum of signals with equally many channels, as long as the longest of them."""
    total = np.zeros((signals[0].shape[0], max(signal.shape[1] for signal in signals)), dtype=np.float32)
    for signal in signals:
        total[:, : signal.shape[1]] += signal
    return total


def write(
    path: Path,
    audio: np.ndarray,
    rate_hz: int = 44_100,
    codec: str | None = None,
    kbps: int | None = None,
    sample_format: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Encode a signal into a file; the suffix picks the container and, unless given, the codec.

    Opus takes 48 kHz (or 8, 12, 16, 24) only. `sample_format` is FFmpeg's name, e.g. "s32" for 24-bit FLAC.
    """
    layout = _LAYOUTS[audio.shape[0]]
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        options = {"strict": "experimental"}  # FFmpeg's own Vorbis encoder counts as one
        stream = container.add_stream(codec or CODECS[path.suffix], rate=rate_hz, layout=layout, options=options)
        assert isinstance(stream, av.AudioStream)
        if kbps:
            stream.bit_rate = kbps * 1000
        if sample_format:
            stream.format = sample_format
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio, dtype=np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate_hz
        frame.time_base, frame.pts = Fraction(1, rate_hz), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _times(seconds: float, rate_hz: int) -> np.ndarray:
    return np.arange(round(seconds * rate_hz)) / rate_hz
