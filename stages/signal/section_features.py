"""Features for comparing parts of a song: harmony, timbre and level."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.fft

from stages import pcm
from stages.signal import spectrum

_RATE_HZ = 22_050
_HOP = 1024
_N_FFT = 4096
_MELS = 128
_MFCC = 14
_SILENCE_DB = -100.0


class SectionFeatures:
    """Chroma, MFCC and power of canonical PCM, averaged over arbitrary spans."""

    def __init__(self, buffer: Any) -> None:
        audio = pcm.mono(buffer, _RATE_HZ)
        power = spectrum.magnitudes(np.pad(audio, (0, _N_FFT)), _N_FFT, _HOP) ** 2
        mel = spectrum.decibels(spectrum.mel_bands(power, _RATE_HZ, _MELS))
        mfcc = scipy.fft.dct(mel, axis=0, norm="ortho")[1:_MFCC]  # without the first, which is loudness
        chroma = spectrum.unit_columns(spectrum.chroma(power, _RATE_HZ))
        self._bands = [_centred(chroma), _centred(mfcc) / (mfcc.std(axis=1, keepdims=True) + 1e-9)]
        self._audio = audio

    def means(self, bounds_s: Sequence[float]) -> np.ndarray:
        """Features [spans, 25] of the spans between bounds: mean chroma and mean MFCC, each of unit length."""
        rows = [[_unit(band[:, start:end].mean(axis=1)) for band in self._bands] for start, end in _frames(bounds_s)]
        return np.array([np.concatenate(row) for row in rows])

    def levels_db(self, bounds_s: Sequence[float]) -> list[float]:
        """RMS level in dBFS of each span between bounds."""
        return [_level_db(self._audio[start:end]) for start, end in _samples(bounds_s)]


def _frames(bounds_s: Sequence[float]) -> Iterator[tuple[int, int]]:
    for start_s, end_s in pairwise(bounds_s):
        start = int(start_s * _RATE_HZ / _HOP)
        yield start, max(start + 1, int(end_s * _RATE_HZ / _HOP))


def _samples(bounds_s: Sequence[float]) -> Iterator[tuple[int, int]]:
    for start_s, end_s in pairwise(bounds_s):
        yield int(start_s * _RATE_HZ), int(end_s * _RATE_HZ)


def _centred(band: np.ndarray) -> np.ndarray:
    return band - band.mean(axis=1, keepdims=True)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / (np.linalg.norm(vector) + 1e-9)


def _level_db(audio: np.ndarray) -> float:
    power = float(np.mean(np.square(audio))) if len(audio) else 0.0
    return max(_SILENCE_DB, 10 * np.log10(power + 1e-12))
