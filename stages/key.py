"""Key of a song by signal processing, and by a second method that may contradict the first."""

from collections.abc import Mapping
from typing import Any

import librosa
import numpy as np

from schemas import columns
from stages import pcm
from stages.base import Stage, Track, Weights
from stages.essentia import load_essentia

_SILENT_PEAK = 1e-3  # -60 dBFS
_TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# How well each degree of the chromatic scale fits a key, rated by listeners (Krumhansl and Kessler 1982, table 1).
_RATINGS = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
_CHROMA_RATE_HZ = 11_025  # what lies above the fifth octave tells timbre, not key
_SHARPS = {"Db": "C#", "Eb": "D#", "Gb": "F#", "Ab": "G#", "Bb": "A#"}


class Key(Stage):
    """The key whose profile best fits the mean pitch-class profile, by Essentia's KeyExtractor ("bgate" profiles).

    `tonic` is spelled with sharps ("C#", never "Db"), `mode` is "major" or "minor", `strength` the correlation with
    the profile. `second_tonic` and `second_mode` are the key whose ratings by listeners correlate best with librosa's
    chromagram: other pitches, other profiles. Silence gives nulls and strength 0.

    Source: Faraldo et al., "Key Estimation in Electronic Dance Music", ECIR 2016; Krumhansl, "Cognitive Foundations of
    Musical Pitch", 1990, chapter 4.
    """

    name = "key"
    type = columns.KEY
    reads = {"pcm": pcm.PCM}
    revision = 2

    @property
    def model(self) -> str:
        """The libraries' versions and the stage's revision."""
        return f"essentia-{self._version}+librosa-{librosa.__version__}+{super().model}"

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Load Essentia; RuntimeError when it is not installed."""
        super().setup(weights)
        essentia, self._version = load_essentia()
        self._extract = essentia.KeyExtractor(sampleRate=pcm.RATE_HZ, profileType="bgate")

    def process(self, track: Track) -> dict[str, Any]:
        """Measure the key of the `pcm` column."""
        audio = pcm.mono(track["pcm"])
        if not len(audio) or np.abs(audio).max() < _SILENT_PEAK:
            return self.own(tonic=None, mode=None, strength=0.0)
        tonic, mode, strength = self._extract(audio)
        second_tonic, second_mode = _key_by_ratings(pcm.mono(track["pcm"], _CHROMA_RATE_HZ))
        return self.own(
            tonic=_SHARPS.get(tonic, tonic),
            mode=mode,
            strength=float(np.clip(strength, 0.0, 1.0)),
            second_tonic=second_tonic,
            second_mode=second_mode,
        )


def _key_by_ratings(audio: np.ndarray) -> tuple[str, str]:
    """Tonic and mode of mono audio [samples] at _CHROMA_RATE_HZ, by the correlation of its mean chroma with ratings."""
    chroma = librosa.feature.chroma_stft(y=audio, sr=_CHROMA_RATE_HZ, n_fft=4096, hop_length=2048, norm=None).mean(1)
    fits = {
        (tonic, mode): np.corrcoef(chroma, np.roll(ratings, step))[0, 1]
        for mode, ratings in _RATINGS.items()
        for step, tonic in enumerate(_TONICS)
    }
    return max(fits, key=lambda key: fits[key])
