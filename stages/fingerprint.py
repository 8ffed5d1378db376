"""Acoustic fingerprint: which pairs of spectral peaks a song contains, as a sketch of bounded size.

Peaks survive lossy coding, limiting and resampling, and a pair records only the distance between its two peaks, so
trimming the start changes nothing. Two songs are compared as sets (`pipeline.curation.duplicates`).
Source: A. Wang, "An Industrial-Strength Audio Search Algorithm", ISMIR 2003, section 2 (constellation, pair hashes);
A. Broder, "On the resemblance and containment of documents", 1997, section 3 (keeping the smallest hashes).
"""

from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import soxr

from schemas.columns import field, stage_struct
from stages.base import Stage, Track
from stages.decode import NATIVE

FINGERPRINT = stage_struct(field("hashes", pa.list_(pa.uint32())))
SKETCH_SIZE = 512  # about 2 KB a song; the standard error of a similarity estimated from two sketches is 0.02

_RATE_HZ = 6_000
_MIXED_AT_ONCE = 1 << 18  # frames
_WINDOW = 1_024  # 171 ms: partials of a chord stand apart
_HOP = 128  # 21 ms
_BLOCK = 4_096  # frames transformed at once, which bounds the memory that an hour of audio takes
_LOWEST_BIN, _HIGHEST_BIN = 26, 427  # 152 Hz (below, a re-encoded peak wanders) to 2.5 kHz (above, MP3 changes it)
_PEAK_BINS, _PEAK_FRAMES = 28, 22  # a peak is the greatest within +-164 Hz and +-0.47 s
_LEVEL_FRAMES = 94  # and not 30 dB below the greatest within +-2 s,
_LEVEL_RATIO = np.float32(10 ** (-30 / 20))
_AUDIBLE = np.float32(1e-4 * _WINDOW / 4)  # nor below a sine of -80 dBFS
_FAN_OUT = 10  # partners of a peak,
_NEAREST_FRAMES, _FARTHEST_FRAMES = 2, 162  # 0.04 to 3.5 s later
_BINS_PER_STEP, _FRAMES_PER_STEP = 2, 3  # hashes resolve pitch to 12 Hz and time to 64 ms: sampling grids differ


class Fingerprint(Stage):
    """Owns `fingerprint`: the sketch of a song's landmarks."""

    name = "fingerprint"
    type = FINGERPRINT
    reads = {"native": NATIVE}

    def process(self, track: Track) -> dict[str, Any]:
        """The sketch, empty for silence; null for audio that `decode` skipped because it is too long."""
        native = track["native"]
        if native is None:
            return {self.column: None}
        audio = np.frombuffer(native["samples"], dtype="<f4").reshape(-1, native["channels"])
        return self.own(hashes=fingerprint(audio, native["rate_hz"]))


def fingerprint(audio: np.ndarray, rate_hz: int) -> np.ndarray:
    """The sketch of float audio [frames, channels]: at most `SKETCH_SIZE` of its smallest hashes, uint32, ascending."""
    hashes = np.unique(_scatter(_pairs(*_peaks(_spectrogram(_mono(audio, rate_hz))))))
    return hashes[:SKETCH_SIZE]


def _mono(audio: np.ndarray, rate_hz: int) -> np.ndarray:
    """The mean of the channels at 6 kHz, computed in blocks because a song may be large."""
    resampler = soxr.ResampleStream(rate_hz, _RATE_HZ, 1)
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(audio), _MIXED_AT_ONCE):
        block = audio[start : start + _MIXED_AT_ONCE]
        mixed = reduce(np.add, block.T) / np.float32(audio.shape[1])  # equals `mean(axis=1)`, nine times as fast
        if not np.isfinite(mixed).all():  # a float file may hold anything
            mixed = np.nan_to_num(mixed, nan=0.0, posinf=1.0, neginf=-1.0)
        parts.append(resampler.resample_chunk(mixed, last=start + len(block) == len(audio)))
    return np.concatenate(parts)


def _spectrogram(mono: np.ndarray) -> np.ndarray:
    """Magnitudes [frames, bins] from the lowest to the highest bin, Hann window."""
    mono = np.pad(mono, (0, max(0, _WINDOW - mono.size)))
    windows = np.lib.stride_tricks.sliding_window_view(mono, _WINDOW)[::_HOP]
    hann = np.hanning(_WINDOW).astype(np.float32)
    blocks = (windows[start : start + _BLOCK] * hann for start in range(0, len(windows), _BLOCK))
    return np.concatenate([np.abs(np.fft.rfft(block)[:, _LOWEST_BIN:_HIGHEST_BIN]) for block in blocks])


def _peaks(spectrogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame and bin of every peak, sorted by frame, then bin."""
    from scipy.ndimage import maximum_filter  # here because scipy takes seconds to import and planning does not need it

    around = maximum_filter(spectrogram, (2 * _PEAK_FRAMES + 1, 2 * _PEAK_BINS + 1), mode="constant")
    level = maximum_filter(spectrogram.max(axis=1), 2 * _LEVEL_FRAMES + 1, mode="constant")[:, None]
    frames, bins = np.nonzero((spectrogram == around) & (spectrogram > np.maximum(level * _LEVEL_RATIO, _AUDIBLE)))
    return frames, bins


def _pairs(frames: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Each peak with its next `_FAN_OUT` partners, packed as 8 bits of pitch, 8 bits of pitch, 8 bits of distance."""
    pitches = (bins // _BINS_PER_STEP).astype(np.uint32)
    partners_left = np.full(frames.size, _FAN_OUT)
    pairs = [np.empty(0, np.uint32)]
    for step in range(1, frames.size):
        apart = frames[step:] - frames[:-step]
        wanted = partners_left[:-step] > 0
        if not (wanted & (apart <= _FARTHEST_FRAMES)).any():
            break
        anchors = np.nonzero(wanted & (apart >= _NEAREST_FRAMES) & (apart <= _FARTHEST_FRAMES))[0]
        partners_left[anchors] -= 1
        distance = (np.rint(apart[anchors] / _FRAMES_PER_STEP)).astype(np.uint32)
        pairs.append(pitches[anchors] << 16 | pitches[anchors + step] << 8 | distance)
    return np.concatenate(pairs)


def _scatter(values: np.ndarray) -> np.ndarray:
    """A bijection of uint32 that destroys all order: the smallest results are a random sample of the values.

    Source: the finalizer of MurmurHash3 (A. Appleby, public domain).
    """
    values = (values ^ values >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    values = (values ^ values >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return values ^ values >> np.uint32(16)
