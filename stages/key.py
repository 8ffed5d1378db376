"""Key of a song by signal processing, and by a second method as a cross-check."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas import columns
from stages import pcm
from stages.base import Stage, Track, Weights
from stages.signal import spectrum
from stages.signal.essentia import ESSENTIA, load_essentia

_SILENT_PEAK = 1e-3  # -60 dBFS
_TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# How often each degree of the chromatic scale sounds in a key (Albrecht and Shanahan 2013, from 490 pieces).
_SHARES = {
    "major": (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081),
    "minor": (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052),
}
_CHROMA_RATE_HZ = 11_025  # above the fifth octave there is timbre, not key
_SHARPS = {"Db": "C#", "Eb": "D#", "Gb": "F#", "Ab": "G#", "Bb": "A#"}


class Key(Stage):
    """The key whose profile best fits the mean pitch-class profile, by Essentia's KeyExtractor ("bgate" profiles).

    `tonic` is spelled with sharps ("C#", never "Db"), `mode` is "major" or "minor", `strength` is the correlation with
    the profile, 0..1. `second_tonic` and `second_mode` come from a chromagram and profiles of their own: the key whose
    scale degrees, as counted in a corpus, correlate best. Silence gives nulls and strength 0.

    Source: Faraldo et al., "Key Estimation in Electronic Dance Music", ECIR 2016; Albrecht and Shanahan, "The Use
    of Large Corpora to Train a New Type of Key-Finding Algorithm", Music Perception 31(1), 2013.
    """

    name = "key"
    type = columns.KEY
    reads = {"pcm": pcm.PCM}
    libraries = (ESSENTIA,)
    revision = 2

    @property
    def model(self) -> str:
        """Essentia's version and the stage's revision."""
        return f"essentia-{self._version}+{super().model}"

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Load Essentia."""
        super().setup(weights)
        essentia, self._version = load_essentia()
        self._extract = essentia.KeyExtractor(sampleRate=pcm.RATE_HZ, profileType="bgate")

    def process(self, track: Track) -> dict[str, Any]:
        """Measure the key of the `pcm` column."""
        audio = pcm.mono(track["pcm"])
        if not len(audio) or np.abs(audio).max() < _SILENT_PEAK:
            return self.own(tonic=None, mode=None, strength=0.0, second_tonic=None, second_mode=None)
        tonic, mode, strength = self._extract(audio)
        second_tonic, second_mode = _key_by_shares(pcm.mono(track["pcm"], _CHROMA_RATE_HZ))
        return self.own(
            tonic=_SHARPS.get(tonic, tonic),
            mode=mode,
            strength=float(np.clip(strength, 0.0, 1.0)),
            second_tonic=second_tonic,
            second_mode=second_mode,
        )


def _key_by_shares(audio: np.ndarray) -> tuple[str, str]:
    """Tonic and mode of mono audio [samples] at `_CHROMA_RATE_HZ`: the shares that correlate best with its chroma."""
    magnitudes = spectrum.magnitudes(audio, 8192, 2048)
    tuning = spectrum.tuning(magnitudes, _CHROMA_RATE_HZ)
    chroma = spectrum.chroma(magnitudes, _CHROMA_RATE_HZ, tuning=tuning).mean(1)
    fits = {
        (tonic, mode): np.corrcoef(chroma, np.roll(shares, step))[0, 1]
        for mode, shares in _SHARES.items()
        for step, tonic in enumerate(_TONICS)
    }
    return max(fits, key=lambda key: fits[key])
