"""Tempo, beats and bars by signal processing (Essentia), refined by a fit through the beats."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import soxr

from schemas import columns
from stages import pcm
from stages.base import Stage, Track, Weights
from stages.signal import spectrum
from stages.signal.essentia import ESSENTIA, load_essentia
from stages.signal.meter import find_meter
from stages.signal.tempo import MIN_BEATS, choose_octave, fit_bpm

_CONFIDENCE_MAX = 5.32  # Essentia's scale; above 3.5 its authors call a beat track excellent (80 % right)
_SILENT_PEAK = 1e-3  # -60 dBFS
_RATE_HZ = 22_050
_HOP = 256
_N_FFT = 2048
_NEAR = np.arange(-6, 3)  # frames around a beat: windows look ahead, and Essentia marks short clicks 30 ms late
_FRAME_HZ = _RATE_HZ / _HOP
_MELS = 64
_BASS_MELS = 5  # up to about 180 Hz


class Rhythm(Stage):
    """Beats by Essentia's RhythmExtractor2013 (multifeature: Zapata, Davies and Gomez 2014).

    `stages.signal.tempo` derives the BPM from them, `stages.signal.meter` the downbeats: an accent is bass onset plus
    change of chroma plus half the onset of all bands. `confidence` is Essentia's 0..5.32 divided by 5.32. Silence and
    music without beats give a null `bpm`, empty lists and confidence 0.

    Source: https://essentia.upf.edu/reference/std_RhythmExtractor2013.html
    """

    name = "rhythm"
    type = columns.RHYTHM
    reads = {"pcm": pcm.PCM}
    libraries = (ESSENTIA,)

    @property
    def model(self) -> str:
        """Essentia's version and the stage's revision."""
        return f"essentia-{self._version}+{super().model}"

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Load Essentia."""
        super().setup(weights)
        essentia, self._version = load_essentia()
        self._extract = essentia.RhythmExtractor2013(method="multifeature")

    def process(self, track: Track) -> dict[str, Any]:
        """Measure tempo, beats, downbeats and meter of the `pcm` column."""
        audio = pcm.mono(track["pcm"])
        beats_s, confidence = self._beats(audio)
        bpm = fit_bpm(beats_s)
        if bpm is None:
            return self.own(bpm=None, confidence=0.0, beats_s=[], downbeats_s=[], octave_confidence=0.0)
        onsets = _Onsets(audio)
        octave = choose_octave(beats_s, bpm, onsets.pulse, _FRAME_HZ)
        meter = find_meter(octave.beats_s, onsets.accents(octave.beats_s))
        return self.own(
            bpm=fit_bpm(octave.beats_s),
            confidence=confidence,
            beats_s=octave.beats_s.tolist(),
            downbeats_s=meter.downbeats_s.tolist(),
            time_signature=meter.time_signature,
            octave=octave.decision,
            octave_confidence=octave.confidence,
        )

    def _beats(self, audio: np.ndarray) -> tuple[np.ndarray, float]:
        if not len(audio) or np.abs(audio).max() < _SILENT_PEAK:
            return np.empty(0), 0.0
        _, beats_s, confidence, _, _ = self._extract(audio)
        # Half of the beats must still give a tempo; without any confidence it would be a guess presented as a fact.
        if len(beats_s) < 2 * MIN_BEATS or confidence <= 0:
            return np.empty(0), 0.0
        return beats_s.astype(np.float64), min(float(confidence) / _CONFIDENCE_MAX, 1.0)


class _Onsets:
    """Onset strength of all bands, of the bass, and chroma of a signal [frames] at 44.1 kHz, at `_FRAME_HZ`."""

    def __init__(self, audio: np.ndarray) -> None:
        low_rate = soxr.resample(audio, pcm.RATE_HZ, _RATE_HZ)
        power = spectrum.magnitudes(low_rate, _N_FFT, _HOP) ** 2
        mel = spectrum.mel_bands(power, _RATE_HZ, _MELS)
        self.pulse = _rise(spectrum.decibels(mel)).mean(axis=0)
        loudness = _rise(np.cbrt(mel))  # in dB a soft onset out of silence would outweigh an accent
        self.full, self.bass = loudness.mean(axis=0), loudness[:_BASS_MELS].mean(axis=0)
        self.chroma = spectrum.unit_columns(spectrum.chroma(power, _RATE_HZ))

    def accents(self, beats_s: np.ndarray) -> np.ndarray:
        """How much starts at each beat: standardised bass onset + change of chroma + half the onset of all bands."""
        frames = np.clip(np.round(beats_s * _FRAME_HZ).astype(int), 0, len(self.pulse) - 1)
        near = np.clip(frames[:, None] + _NEAR, 0, len(self.pulse) - 1)
        begins = np.maximum(0, frames - _N_FFT // 2 // _HOP)  # a frame looks half a window ahead
        chroma = spectrum.unit_columns(_means_between(self.chroma, begins)[:, -len(beats_s) :])
        change = 1.0 - np.sum(chroma * np.roll(chroma, 1, axis=1), axis=0)
        change[0] = change[1:].mean()
        signals = ((1.0, self.bass[near].max(axis=1)), (1.0, change), (0.5, self.full[near].max(axis=1)))
        return sum(weight * (values - values.mean()) / (values.std() + 1e-9) for weight, values in signals)


def _means_between(bands: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Means of [bands, frames] over the stretches that begin at 0 and at each of these frames."""
    bounds = np.unique([0, *begins, bands.shape[1]])
    return np.stack([bands[:, start:end].mean(axis=1) for start, end in pairwise(bounds)], axis=1)


def _rise(bands: np.ndarray) -> np.ndarray:
    """How much each band [bands, frames] grows from frame to frame."""
    return np.maximum(0.0, np.diff(bands, axis=1, prepend=bands[:, :1]))
