"""How well a song was recorded and mastered, measured on the decoder's own float samples.

Resampling and int16 would hide inter-sample peaks, clipping and the edge of the spectrum: all figures are taken at the
file's rate, before canonical PCM is made. Nothing here is a number that is not finite: silence reads as a floor.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyloudnorm
import scipy.fft
import soxr
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from schemas import columns
from stages import base
from stages.decode import NATIVE

FLOOR_LUFS = -70.0  # the absolute gate of BS.1770: silence has no loudness above it
FLOOR_DB = -120.0  # stands for digital silence, whose level is minus infinity
_WINDOW_S = 0.05  # of silent_ratio and noise_floor_db
_NOISE_PERCENTILE = 5.0


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

    Cut off are three or more neighbours at or over full scale, and three or more equal neighbours at the very top of
    the song, wherever it is: a master that was clipped and then turned down. (A lone square wave looks the same.)
    """
    loud = np.abs(samples)
    over = _runs_of_three(loud >= 0.9999)
    top = loud.max(initial=0.0)
    at_top = loud >= 0.999 * top
    flat = at_top[1:] & at_top[:-1] & (samples[1:] == samples[:-1])
    flat = _runs_of_three(np.pad(flat, ((0, 1), (0, 0))) | np.pad(flat, ((1, 0), (0, 0))))
    return float(np.mean(over | flat)) if top > 0 else 0.0


def bandwidth_hz(samples: np.ndarray, rate_hz: int) -> float:
    """The highest frequency with energy of the song itself in [frames, channels]; 0 for silence.

    From the long-term average spectrum in bands of 100 Hz: the highest band above what 16-bit dither leaves; and, if
    the spectrum falls off a cliff below that, as at the low-pass of a lossy encoder, the edge of the cliff: what lies
    beyond is distortion of a clipped decode. A 64, 128 or 320 kbit/s MP3 reads about 11, 16 to 17 and 20 kHz, also
    when re-saved as FLAC.
    """
    levels, edges_hz = _band_levels(samples, rate_hz)
    real = np.flatnonzero(levels > _DITHER_DB)
    if not real.size:
        return 0.0
    highest = int(real[-1])
    for band in range(highest, int(_CLIFF_FROM_HZ / _BAND_HZ), -1):
        before = levels[band - _CLIFF_BANDS : band + 1].mean()
        beyond = levels[band + _CLIFF_BANDS :]
        if beyond.size and before - beyond.max() > _CLIFF_DB:
            return float(edges_hz[band])
    return float(edges_hz[highest])
