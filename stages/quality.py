"""How well a song was recorded and mastered, measured on the decoder's own float samples.

Resampling and int16 would hide inter-sample peaks, clipping and the edge of the spectrum: all figures are taken at the
file's rate, before canonical PCM is made. Every figure is finite: silence reads as a floor instead of minus infinity.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import soxr
from pydantic import Field

from schemas import columns
from stages import base
from stages.decode import NATIVE

FLOOR_LUFS = -70.0  # the absolute gate of BS.1770: silence has no loudness above it
FLOOR_DB = -120.0  # stands for digital silence, whose level is minus infinity
_WINDOW_S = 0.05  # of silent_ratio and noise_floor_db
_NOISE_PERCENTILE = 5.0
_FULL_SCALE = 0.9999  # int16 ends at 0.99997
_LOUDEST = 1000.0
_SPECTRUM_S = 0.08  # shortest window of the long-term spectrum
_SPECTRUM_WINDOWS = 2000  # spread evenly over the song: enough for an average, whatever its length
_BAND_HZ = 100.0
_DITHER_DB = 10 * math.log10(2**-30 / 4 / 22_050) + 8  # density of triangular 16-bit dither at 44.1 kHz, and a margin
_CLIFF_DB = 15.0
_CLIFF_BANDS = 5
_CLIFF_FROM_BAND = 70  # lower down, music itself has cliffs


class NotDecoded(base.TrackError):
    """There are no samples: the song is longer than `decode.limit_s`."""


class QualityParams(base.Params):
    """What counts as silence."""

    silence_dbfs: float = Field(default=-60.0, lt=0)


class Quality(base.Stage):
    """Loudness, true peak, clipping, silence, bandwidth, stereo correlation and noise floor."""

    name = "quality"
    type = columns.QUALITY
    reads = {"native": NATIVE, "audio": pa.struct([("duration_s", pa.float64())])}
    Params = QualityParams

    def process(self, track: base.Track) -> dict[str, Any]:
        """Measure one song.

        Raises:
            NotDecoded: it has no native samples.
        """
        native = track["native"]
        if native is None:
            raise NotDecoded(f"{track['audio']['duration_s']:.0f} s is longer than decode.limit_s")
        samples = _finite(np.frombuffer(native["samples"], dtype=np.float32).reshape(-1, native["channels"]))
        rate_hz = native["rate_hz"]
        levels = _window_levels(samples, rate_hz)
        return self.own(
            loudness_lufs=loudness_lufs(samples, rate_hz),
            true_peak_dbtp=true_peak_dbtp(samples, rate_hz),
            clipped_ratio=clipped_ratio(samples),
            silent_ratio=float(np.mean(levels < self.params.silence_dbfs)),
            bandwidth_hz=bandwidth_hz(samples, rate_hz),
            stereo_correlation=stereo_correlation(samples),
            noise_floor_db=noise_floor_db(levels),
        )


def loudness_lufs(samples: np.ndarray, rate_hz: int) -> float | None:
    """Integrated loudness of [frames, channels] after ITU-R BS.1770-4 (pyloudnorm), at least `FLOOR_LUFS`.

    Shorter than one gating block of 0.4 s it is not defined: None. Of more than five channels the fourth is taken for
    the LFE (FFmpeg's order), which the standard leaves out, and the first five others are measured.
    """
    import pyloudnorm  # here, for scipy takes seconds to import and a plan does without

    if len(samples) < 0.4 * rate_hz:
        return None
    if samples.shape[1] > 5:
        samples = np.delete(samples, 3, axis=1)[:, :5]
    loudness = pyloudnorm.Meter(rate_hz).integrated_loudness(samples)
    return max(FLOOR_LUFS, float(np.nan_to_num(loudness, nan=FLOOR_LUFS, neginf=FLOOR_LUFS)))


def true_peak_dbtp(samples: np.ndarray, rate_hz: int) -> float:
    """The highest peak of [frames, channels] between the samples, after BS.1770-4 annex 2: oversampled by libsoxr.

    Four times up to 96 kHz, twice up to 192 kHz; never below the highest sample, at least `FLOOR_DB`.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    factor = 4 if rate_hz < 96_000 else 2 if rate_hz < 192_000 else 1
    if factor > 1:
        resampler = soxr.ResampleStream(rate_hz, factor * rate_hz, samples.shape[1])
        for start in range(0, len(samples), rate_hz):
            block = resampler.resample_chunk(samples[start : start + rate_hz], last=start + rate_hz >= len(samples))
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
    return _db(peak**2)


def clipped_ratio(samples: np.ndarray) -> float:
    """Share of the samples of [frames, channels] that were cut off.

    Cut off are three or more equal neighbours at the very top of the song, wherever that is: a master that was clipped
    and then turned down still shows it. Overs of a float decode count as full scale, which is what a player makes of
    them. (A lone square wave cannot be told from clipping.)
    """
    ceiling = min(_FULL_SCALE, np.abs(samples).max(initial=0.0))
    if ceiling == 0 or len(samples) < 3:
        return 0.0
    held = np.clip(samples, -ceiling, ceiling)
    equal = (held[1:] == held[:-1]) & (np.abs(held[1:]) >= 0.999 * ceiling)
    runs = equal[1:] & equal[:-1]
    clipped = np.zeros(samples.shape, dtype=bool)
    for neighbour in range(3):
        clipped[neighbour : neighbour + len(runs)] |= runs
    return float(clipped.mean())


def bandwidth_hz(samples: np.ndarray, rate_hz: int) -> float:
    """The highest frequency at which [frames, channels] hold energy of the song itself; 0 for silence.

    Read from the long-term average spectrum: the highest band above what 16-bit dither leaves. If the spectrum falls
    off a cliff below that, as at the low-pass of a lossy encoder, the cliff's edge counts, for what lies beyond it is
    the distortion of a clipped decode. So a low-passed song keeps its bandwidth when it is re-saved as FLAC.
    """
    levels = _band_levels_db(samples, rate_hz)
    above_dither = np.flatnonzero(levels > _DITHER_DB)
    if not above_dither.size:
        return 0.0
    highest = int(above_dither[-1])
    cliff = next(filter(lambda band: _is_cliff(levels, band), range(highest, _CLIFF_FROM_BAND, -1)), highest)
    return min((cliff + 1) * _BAND_HZ, rate_hz / 2)


def stereo_correlation(samples: np.ndarray) -> float:
    """Correlation of the first two of [frames, channels], without removing means: 1 mono, 0 unrelated, -1 antiphase.

    Two silent channels are equal, so 1; one silent channel is unrelated to the other, so 0.
    """
    if samples.shape[1] == 1:
        return 1.0
    left, right = samples[:, 0], samples[:, 1]
    if np.array_equal(left, right):
        return 1.0
    left, right = left.astype(np.float64), right.astype(np.float64)
    energy = math.sqrt(float(left @ left) * float(right @ right))
    return float(np.clip(left @ right / energy, -1.0, 1.0)) if energy > 0 else 0.0


def noise_floor_db(levels: np.ndarray) -> float:
    """The level (dBFS) that 5 % of the windows stay under, those of digital silence left aside.

    `FLOOR_DB` if there are no others.
    """
    sounding = levels[levels > FLOOR_DB]
    return float(np.percentile(sounding, _NOISE_PERCENTILE)) if sounding.size else FLOOR_DB


def _window_levels(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """RMS level (dBFS) of every window of 50 ms over all channels; the last one may be shorter."""
    starts = np.arange(0, len(samples), round(_WINDOW_S * rate_hz))
    power = np.einsum("fc,fc->f", samples, samples, dtype=np.float64)
    frames = np.diff(starts, append=len(samples))
    mean_power = np.add.reduceat(power, starts) / (frames * samples.shape[1])
    return 10 * np.log10(np.maximum(mean_power, 10 ** (FLOOR_DB / 10)))


def _band_levels_db(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Power density of each band of 100 Hz up to Nyquist, in dB re full scale squared per Hz, mean of the channels."""
    import scipy.fft

    size = 2 ** math.ceil(math.log2(_SPECTRUM_S * rate_hz))
    padded = np.pad(samples, ((0, max(0, size - len(samples))), (0, 0)))
    count = min(_SPECTRUM_WINDOWS, len(padded) // size)
    starts = np.linspace(0, len(padded) - size, count).astype(int)
    window = np.hanning(size).astype(np.float32)
    power = np.zeros(size // 2 + 1)
    for start in starts:
        spectrum = scipy.fft.rfft(padded[start : start + size].T * window)
        power += np.mean(np.abs(spectrum) ** 2, axis=0)
    density = 2 * power / (count * rate_hz * np.sum(window.astype(np.float64) ** 2))
    bands = (scipy.fft.rfftfreq(size, 1 / rate_hz) / _BAND_HZ).astype(int)
    means = np.bincount(bands, density) / np.bincount(bands)
    return 10 * np.log10(np.maximum(means, 1e-30))


def _is_cliff(levels: np.ndarray, band: int) -> bool:
    """Whether everything from 500 Hz above a band on lies far below the 500 Hz under it."""
    beyond = levels[band + _CLIFF_BANDS :]
    return beyond.size > 0 and bool(levels[band - _CLIFF_BANDS : band + 1].mean() - beyond.max() > _CLIFF_DB)


def _finite(samples: np.ndarray) -> np.ndarray:
    """Float files may hold anything: NaN becomes silence, and whatever is over +60 dBFS is held there."""
    if np.abs(samples).max(initial=0.0) <= _LOUDEST:
        return samples
    return np.clip(np.nan_to_num(samples, nan=0.0, posinf=_LOUDEST, neginf=-_LOUDEST), -_LOUDEST, _LOUDEST)


def _db(power: float) -> float:
    return max(FLOOR_DB, 10 * math.log10(power)) if power > 0 else FLOOR_DB
