"""Spectrograms, mel bands and chroma in numpy, with the filter banks of transformers.

The results equal librosa's to the last few bits. No stage imports librosa itself: on import it compiles with numba and
caches the machine code in its own package folder, and two workers that do so at once leave a cache that crashes every
later process.
"""

from functools import cache

import numpy as np
from transformers.audio_utils import chroma_filter_bank, hertz_to_mel, mel_filter_bank, mel_to_hertz

_BLOCK = 2048  # frames transformed at once, which bounds the memory that a long song takes
_LOWEST_POWER = 1e-10
_DYNAMIC_RANGE_DB = 80.0
_TUNING_FROM_HZ, _TUNING_TO_HZ = 150.0, 4000.0
_TUNING_PEAK = 0.1  # least magnitude of a partial, relative to the loudest of its frame
_TUNING_STEPS = 100  # of a semitone


def magnitudes(
    audio: np.ndarray, n_fft: int, hop: int, *, window: int | None = None, centred: bool = True
) -> np.ndarray:
    """Magnitudes float32 [n_fft / 2 + 1, frames] of mono float audio [samples] under a Hann window.

    Args:
        audio: mono samples, at least n_fft of them unless `centred`.
        n_fft: length of a frame, samples.
        hop: samples from one frame to the next.
        window: length of the window, centred in the frame; by default n_fft.
        centred: frame i is centred on sample i * hop, with silence before and after the audio; else it starts there.
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
    """Triangular filters float32 [bands, n_fft / 2 + 1] on Slaney's mel scale or HTK's; cached, so do not modify them.

    Args:
        rate_hz: sampling rate of the audio, even.
        n_fft: length of a frame, samples.
        bands: number of filters.
        lowest_hz: lower end of the first filter.
        highest_hz: upper end of the last filter.
        htk: use HTK's scale, 2595 log10(1 + f / 700).
        area: give every filter the same area (Slaney's norm) rather than the same height.
    """
    scale = "htk" if htk else "slaney"
    filters = mel_filter_bank(n_fft // 2 + 1, bands, lowest_hz, highest_hz, rate_hz, mel_scale=scale).T
    filters = filters.astype(np.float32)
    if area:  # after rounding, as in librosa: columns of earlier datasets were made with exactly these numbers
        edges_mel = np.linspace(hertz_to_mel(lowest_hz, scale), hertz_to_mel(highest_hz, scale), bands + 2)
        edges_hz = np.asarray(mel_to_hertz(edges_mel, scale))
        filters *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return filters


def chroma(spectrum: np.ndarray, rate_hz: int, *, tuning: float = 0.0) -> np.ndarray:
    """Energy in each of the twelve pitch classes, C first: float32 [12, frames].

    Args:
        spectrum: magnitudes or power [n_fft / 2 + 1, frames].
        rate_hz: sampling rate of the audio.
        tuning: deviation of the pitches from A = 440 Hz, in semitones.

    Source: D. Ellis, "Chroma feature analysis and synthesis", 2007.
    """
    n_fft = 2 * (len(spectrum) - 1)
    filters = chroma_filter_bank(n_fft, 12, rate_hz, tuning=tuning).astype(np.float32)
    return (spectrum.T @ filters.T).T


def tuning(magnitude: np.ndarray, rate_hz: int) -> float:
    """Deviation of the pitches in magnitudes [n_fft / 2 + 1, frames] from A = 440 Hz: -0.5 to 0.5 semitones.

    The most common hundredth of a semitone among the partials of at least median level; 0 without any.
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
    """Every column of [bands, frames] scaled to unit Euclidean length; silent ones stay zero."""
    lengths = np.sqrt(np.sum(np.square(bands, dtype=np.float64), axis=0, keepdims=True))
    lengths[lengths < np.finfo(bands.dtype).tiny] = 1.0
    return (bands / lengths).astype(bands.dtype)


def decibels(power: np.ndarray) -> np.ndarray:
    """Power in dB re 1, floored at 80 dB below its maximum."""
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
    threshold = _TUNING_PEAK * magnitude.max(axis=0)
    audible = np.where(magnitude > threshold, magnitude, 0)
    centre_hz = np.arange(1, len(magnitude) - 1) * rate_hz / n_fft
    in_range = (centre_hz >= _TUNING_FROM_HZ) & (centre_hz < _TUNING_TO_HZ)
    peaks = in_range[:, None] & (audible[1:-1] > audible[:-2]) & (audible[1:-1] >= audible[2:])
    bins, frames = np.nonzero(peaks)
    bend = (above + below - 2 * here)[bins, frames]
    slope = ((above - below) / 2)[bins, frames]
    shift = np.zeros_like(slope)
    np.divide(-slope, bend, out=shift, where=np.abs(slope) < np.abs(bend))
    return (bins + 1 + shift) * rate_hz / n_fft, here[bins, frames] + 0.5 * slope * shift
