"""Waveforms as bars."""

from types import SimpleNamespace
from typing import BinaryIO

import av
import numpy as np

from pipeline.errors import DataProblem

BARS = 400
_RATE_HZ = 8_000  # enough for a picture


class NoWaveform(DataProblem):
    """Not audio, or too damaged."""


def peaks(file: BinaryIO, bars: int = BARS) -> list[float]:
    """Bar heights of an audio file, 0..1, relative to the highest; all 0 for silence.

    Args:
        file: opened for reading, in any format that FFmpeg knows (`stages.decode.opened` opens a path or a URI).
        bars: number of bars at most; audio of fewer samples has one bar per sample.

    Raises:
        NoWaveform: it cannot be decoded.
    """
    nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)  # or FFmpeg goes by the suffix
    try:
        with av.open(nameless, "r", container_options={"protocol_whitelist": "none"}) as container:
            resampler = av.AudioResampler("flt", "stereo", _RATE_HZ)
            frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
            blocks = [part.to_ndarray()[0] for part in [*frames, *resampler.resample(None)]]
    except (av.FFmpegError, IndexError) as error:
        raise NoWaveform(f"no waveform: {error}") from error
    return bars_of(np.concatenate([np.zeros(0, np.float32), *blocks]), bars)


def bars_of(samples: np.ndarray, bars: int = BARS) -> list[float]:
    """Bar heights of samples, mono or interleaved; see `peaks`."""
    if not samples.size:
        return []
    parts = np.array_split(np.abs(samples), min(bars, samples.size))
    heights = np.array([part.max() for part in parts])
    highest = float(heights.max())
    return [round(float(height) / highest, 3) if highest else 0.0 for height in heights]
