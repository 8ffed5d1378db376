"""Spectrograms, mel bands and chroma in numpy, with the filter banks of transformers.

The figures are librosa's to the last few bits. librosa itself is not imported by any stage: it compiles with numba when
it is imported and keeps the machine code in its own package folder, and two workers that do so at once leave a cache
there that crashes every later process.
"""

from functools import cache

import numpy as np
from transformers.audio_utils import chroma_filter_bank, hertz_to_mel, mel_filter_bank, mel_to_hertz

_BLOCK = 2048  # frames transformed at once, which bounds the memory that a long song takes
_LOWEST_POWER = 1e-10
_DYNAMIC_RANGE_DB = 80.0
_TUNING_FROM_HZ, _TUNING_TO_HZ = 150.0, 4000.0
_TUNING_PEAK = 0.1  # a partial is at least so loud, as a share of the loudest of its frame
_TUNING_STEPS = 100  # of a semitone


def magnitudes(
    audio: np.ndarray, n_fft: int, hop: int, *, window: int | None = None, centred: bool = True
) -> np.ndarray:
    """Magnitudes float32 [n_fft / 2 + 1, frames] of mono float audio [samples] under a Hann window.

    Args:
        audio: mono samples, at least n_fft of them unless `centred`.
        n_fft: length of a frame, samples.
        hop: samples from frame to frame.
        window: length of the window in the middle of a frame; by default all of it.
        centred: frame i is centred on sample i * hop, with silence before and behind the audio; else it starts there.
    """
    if centred:
        audio = np.pad(audio, n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(audio, n_fft)[::hop]
    hann = _hann(n_fft, window or n_fft)
    made = np.empty((len(frames), n_fft // 2 + 1), np.float32)
    for start in range(0, len(frames), _BLOCK):
        spectrum = np.fft.rfft(frames[start : start + _BLOCK] * hann).astype(np.complex64)
        made[start : start + _BLOCK] = np.abs(spectrum)
    return made.T


def mel_bands(power: np.ndarray, rate_hz: int, bands: int) -> np.ndarray:
    """Mel bands float32 [bands, frames] of a spectrum [n_fft / 2 + 1, frames], from 0 Hz to half the sampling rate."""
    n_fft = 2 * (len(power) - 1)
    return mel_filters(rate_hz, n_fft, bands, 0.0, rate_hz / 2) @ power


@cache
def mel_filters(
    rate_hz: int, n_fft: int, bands: int, lowest_hz: float, highest_hz: float, *, htk: bool = False, area: bool = True
) -> np.ndarray:
    """Triangular filters float32 [bands, n_fft / 2 + 1], Slaney's mel scale or HTK's; do not write to them.

    Args:
        rate_hz: sampling rate of the audio, even.
        n_fft: length of a frame, samples.
        bands: how many filters.
        lowest_hz: where the first begins.
        highest_hz: where the last ends.
        htk: the scale 2595 log10(1 + f / 700).
        area: every filter has the same area (Slaney's norm), else the same height.
    """
    scale = "htk" if htk else "slaney"
    filters = mel_filter_bank(n_fft // 2 + 1, bands, lowest_hz, highest_hz, rate_hz, mel_scale=scale).T
    filters = filters.astype(np.float32)
    if area:  # after rounding, as librosa does: columns of earlier datasets were made with these very numbers
        edges_mel = np.linspace(hertz_to_mel(lowest_hz, scale), hertz_to_mel(highest_hz, scale), bands + 2)
        edges_hz = np.asarray(mel_to_hertz(edges_mel, scale))
        filters *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return filters


def chroma(spectrum: np.ndarray, rate_hz: int, *, tuning: float = 0.0) -> np.ndarray:
    """How much sounds in each of the twelve pitch classes, C first: float32 [12, frames].

    Args:
        spectrum: magnitudes or power [n_fft / 2 + 1, frames].
        rate_hz: sampling rate of the audio.
        tuning: where the pitches lie, in semitones from A = 440 Hz.

    Source: D. Ellis, "Chroma feature analysis and synthesis", 2007.
    """
    n_fft = 2 * (len(spectrum) - 1)
    filters = chroma_filter_bank(n_fft, 12, rate_hz, tuning=tuning).astype(np.float32)
    return (spectrum.T @ filters.T).T


def tuning(magnitude: np.ndarray, rate_hz: int) -> float:
    """Deviation of the pitches in magnitudes [n_fft / 2 + 1, frames] from A = 440 Hz: -0.5 to 0.5 semitones.

    The fullest hundredth of a semitone among the partials that are at least as loud as half of them; 0 without any.
    """
    pitches_hz, levels = _partials(magnitude, rate_hz)
    if not pitches_hz.size:
        return 0.0
    loud = pitches_hz[levels >= np.median(levels)]
    deviation = np.mod(12 * np.log2(loud / 27.5), 1.0)
    deviation[deviation >= 0.5] -= 1.0
    counts, edges = np.histogram(deviation, np.linspace(-0.5, 0.5, _TUNING_STEPS + 1))
    return float(edges[np.argmax(counts)])


def unit_columns(bands: np.ndarray) -> np.ndarray:
    """Every column of [bands, frames] with Euclidean length one; silent ones stay zero."""
    lengths = np.sqrt(np.sum(np.square(bands, dtype=np.float64), axis=0, keepdims=True))
    lengths[lengths < np.finfo(bands.dtype).tiny] = 1.0
    return (bands / lengths).astype(bands.dtype)


def decibels(power: np.ndarray) -> np.ndarray:
    """Power in dB re 1, at most 80 dB below its greatest value."""
    levels = 10.0 * np.log10(np.maximum(_LOWEST_POWER, power))
    return np.maximum(levels, levels.max() - _DYNAMIC_RANGE_DB)


def _hann(n_fft: int, window: int) -> np.ndarray:
    before = (n_fft - window) // 2
    periodic = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return np.pad(periodic, (before, n_fft - window - before))


def _partials(magnitude: np.ndarray, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Frequency and level of the spectral peaks of all frames, by a parabola through each and its neighbours.

    Source: J. O. Smith, "Sinusoidal peak interpolation" in "Spectral Audio Signal Processing", 2011.
    """
    n_fft = 2 * (len(magnitude) - 1)
    below, here, above = magnitude[:-2], magnitude[1:-1], magnitude[2:]
    loudest = _TUNING_PEAK * magnitude.max(axis=0)
    heard = np.where(magnitude > loudest, magnitude, 0)
    centre_hz = np.arange(1, len(magnitude) - 1) * rate_hz / n_fft
    in_range = (centre_hz >= _TUNING_FROM_HZ) & (centre_hz < _TUNING_TO_HZ)
    peaks = in_range[:, None] & (heard[1:-1] > heard[:-2]) & (heard[1:-1] >= heard[2:])
    bins, frames = np.nonzero(peaks)
    bend = (above + below - 2 * here)[bins, frames]
    slope = ((above - below) / 2)[bins, frames]
    shift = np.zeros_like(slope)
    np.divide(-slope, bend, out=shift, where=np.abs(slope) < np.abs(bend))
    return (bins + 1 + shift) * rate_hz / n_fft, here[bins, frames] + 0.5 * slope * shift
