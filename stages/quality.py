"""How well a song was recorded and mastered, measured on the decoder's own float samples.

Resampling and int16 would hide inter-sample peaks, clipping and the edge of the spectrum: all figures are taken at the
file's rate, before canonical PCM is made. Every figure is finite: silence reads as a floor instead of minus infinity.
A song may be large, so samples are worked through in blocks and never copied as a whole.
"""

import math
from collections.abc import Iterator
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
_GATE_S, _GATE_STEP = 0.4, 0.25  # gating blocks of BS.1770 overlap by three quarters
_CHANNEL_WEIGHTS = (1.0, 1.0, 1.0, 1.41, 1.41)  # left, right, centre, and the surrounds
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
_BLOCK_VALUES = 1 << 20  # samples of all channels that are worked on at once


class NotDecoded(base.TrackError):
    """There are no samples: the song is longer than `decode.limit_s`."""


class QualityParams(base.Params):
    """What counts as silence.

    Attributes:
        silence_dbfs: a window whose RMS level is below this is silent.
    """

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
    """Integrated loudness of [frames, channels] after ITU-R BS.1770-4, at least `FLOOR_LUFS`.

    Below one gating block of 0.4 s it is undefined: None. With more than five channels the fourth is taken for the LFE
    (FFmpeg's order), which the standard leaves out, and the first five others are measured.
    """
    if len(samples) < _GATE_S * rate_hz:
        return None
    channels = [c for c in range(samples.shape[1]) if c != 3 or samples.shape[1] <= 5][:5]
    powers = _gated_powers(samples, channels, rate_hz)
    weights = np.array(_CHANNEL_WEIGHTS[: len(channels)])
    loudness = _lufs(weights @ powers)
    above = loudness >= FLOOR_LUFS
    if not above.any():
        return FLOOR_LUFS
    above &= loudness > _lufs(weights @ powers[:, above].mean(axis=1)) - 10.0
    return max(FLOOR_LUFS, float(_lufs(weights @ powers[:, above].mean(axis=1))))


def true_peak_dbtp(samples: np.ndarray, rate_hz: int) -> float:
    """The highest peak of [frames, channels] between the samples, after BS.1770-4 annex 2: oversampled by libsoxr.

    Four times up to 96 kHz, twice up to 192 kHz; never below the highest sample, at least `FLOOR_DB`.
    """
    peak = _peak(samples)
    factor = 4 if rate_hz < 96_000 else 2 if rate_hz < 192_000 else 1
    if factor > 1:
        resampler = soxr.ResampleStream(rate_hz, factor * rate_hz, samples.shape[1])
        for start, stop in _blocks(samples):
            block = resampler.resample_chunk(samples[start:stop], last=stop == len(samples))
            peak = max(peak, _peak(block))
    return _db(peak**2)


def clipped_ratio(samples: np.ndarray) -> float:
    """Share of the samples of [frames, channels] that were cut off.

    Cut off are three or more equal neighbours at the very top of the song, wherever that is: a master that was clipped
    and then turned down still shows it. Overs of a float decode count as full scale, which is what a player makes of
    them. (A lone square wave cannot be told from clipping.)
    """
    ceiling = np.float32(min(_FULL_SCALE, _peak(samples)))
    if ceiling == 0 or len(samples) < 3:
        return 0.0
    clipped = 0
    for start, stop in _blocks(samples):
        before = max(0, start - 2)  # a run may begin there, or end two frames beyond the block
        clipped += int(_is_clipped(samples[before : stop + 2], ceiling)[start - before :][: stop - start].sum())
    return clipped / samples.size


def bandwidth_hz(samples: np.ndarray, rate_hz: int) -> float:
    """The highest frequency at which [frames, channels] hold energy of the song itself; 0 for silence.

    Read from the long-term average spectrum: the highest band above what 16-bit dither leaves. If the spectrum falls
    off a cliff below that, as at the low-pass of a lossy encoder, the cliff's edge counts, because what lies beyond it
    is the distortion of a clipped decode. So a low-passed song keeps its bandwidth when it is re-saved as FLAC.
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
    if all(np.array_equal(samples[start:stop, 0], samples[start:stop, 1]) for start, stop in _blocks(samples)):
        return 1.0
    products = np.zeros((2, 2))
    for start, stop in _blocks(samples):
        pair = samples[start:stop, :2].T.astype(np.float64)
        products += pair @ pair.T
    energy = math.sqrt(products[0, 0] * products[1, 1])
    return float(np.clip(products[0, 1] / energy, -1.0, 1.0)) if energy > 0 else 0.0


def noise_floor_db(levels: np.ndarray) -> float:
    """The level (dBFS) that 5 % of the windows stay under, not counting those of digital silence.

    `FLOOR_DB` if there are no others.
    """
    sounding = levels[levels > FLOOR_DB]
    return float(np.percentile(sounding, _NOISE_PERCENTILE)) if sounding.size else FLOOR_DB


def _gated_powers(samples: np.ndarray, channels: list[int], rate_hz: int) -> np.ndarray:
    """Mean square [channels, gating blocks] of K-weighted samples, in blocks of 0.4 s that begin every 0.1 s.

    As in pyloudnorm, whose filters these are, but without its five copies of the song.
    """
    import pyloudnorm  # here because scipy takes seconds to import and planning does not need it
    import scipy.signal

    filters = [(f.passband_gain, f.b, f.a) for f in pyloudnorm.Meter(rate_hz)._filters.values()]
    states = [np.zeros((2, len(channels))) for _ in filters]
    count = round((len(samples) / rate_hz - _GATE_S) / (_GATE_S * _GATE_STEP)) + 1
    begins = [int(_GATE_S * j * _GATE_STEP * rate_hz) for j in range(count)]
    ends = [int(_GATE_S * (j * _GATE_STEP + 1) * rate_hz) for j in range(count)]
    powers = np.zeros((len(channels), count))
    held, first, done = np.zeros((0, len(channels)), np.float32), 0, 0  # frames from the first on that are still needed
    for start, stop in _blocks(samples):
        block = samples[start:stop, channels]
        for i, (gain, b, a) in enumerate(filters):
            weighted, states[i] = scipy.signal.lfilter(b, a, block, axis=0, zi=states[i])
            block = (gain * weighted).astype(np.float32)
        held = np.concatenate([held, block])
        while done < count and (ends[done] <= stop or stop == len(samples)):
            squares = np.square(held[begins[done] - first : ends[done] - first].T.copy())
            powers[:, done] = squares.sum(axis=1) * (1.0 / (_GATE_S * rate_hz))
            done += 1
        if done < count:
            held, first = held[begins[done] - first :], begins[done]
    return powers


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10.0 * np.log10(power)


def _is_clipped(samples: np.ndarray, ceiling: np.float32) -> np.ndarray:
    """Which of [frames, channels] belong to three or more equal neighbours at the ceiling."""
    held = np.clip(samples, -ceiling, ceiling)
    equal = (held[1:] == held[:-1]) & (np.abs(held[1:]) >= 0.999 * ceiling)
    runs = equal[1:] & equal[:-1]
    clipped = np.zeros(samples.shape, dtype=bool)
    for neighbour in range(3):
        clipped[neighbour : neighbour + len(runs)] |= runs
    return clipped


def _window_levels(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """RMS level (dBFS) of every window of 50 ms over all channels; the last one may be shorter."""
    window = round(_WINDOW_S * rate_hz)
    levels = []
    for start, stop in _blocks(samples, whole=window):
        block = samples[start:stop]
        starts = np.arange(0, len(block), window)
        power = np.einsum("fc,fc->f", block, block, dtype=np.float64)
        frames = np.diff(starts, append=len(block))
        mean_power = np.add.reduceat(power, starts) / (frames * samples.shape[1])
        levels.append(10 * np.log10(np.maximum(mean_power, 10 ** (FLOOR_DB / 10))))
    return np.concatenate(levels)


def _blocks(samples: np.ndarray, whole: int = 1) -> Iterator[tuple[int, int]]:
    """First frame and end of each block of [frames, channels]; all but the last are multiples of `whole` frames."""
    size = max(1, _BLOCK_VALUES // samples.shape[1] // whole) * whole
    for start in range(0, len(samples), size):
        yield start, min(start + size, len(samples))


def _peak(samples: np.ndarray) -> float:
    """The greatest magnitude; NaN if there is one."""
    return max(float(samples.max(initial=0.0)), -float(samples.min(initial=0.0))) if samples.size else 0.0


def _band_levels_db(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Power density of each band of 100 Hz up to Nyquist, in dB re full scale squared per Hz, mean of the channels."""
    import scipy.fft

    size = 2 ** math.ceil(math.log2(_SPECTRUM_S * rate_hz))
    padded = samples if len(samples) >= size else np.pad(samples, ((0, size - len(samples)), (0, 0)))
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
    """Float files may hold anything: NaN becomes silence, and whatever exceeds +60 dBFS is clipped to it."""
    if _peak(samples) <= _LOUDEST:
        return samples
    held = np.empty_like(samples)
    for start, stop in _blocks(samples):
        block = np.nan_to_num(samples[start:stop], nan=0.0, posinf=_LOUDEST, neginf=-_LOUDEST)
        np.clip(block, -_LOUDEST, _LOUDEST, out=held[start:stop])
    return held


def _db(power: float) -> float:
    return max(FLOOR_DB, 10 * math.log10(power)) if power > 0 else FLOOR_DB
