"""Key of a song by signal processing (Essentia)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas import columns
from stages import pcm
from stages.base import Stage, Track, Weights
from stages.essentia import load_essentia

_SILENT_PEAK = 1e-3  # -60 dBFS
_SHARPS = {"Db": "C#", "Eb": "D#", "Gb": "F#", "Ab": "G#", "Bb": "A#"}


class Key(Stage):
    """The key whose profile best fits the mean pitch-class profile, by Essentia's KeyExtractor ("bgate" profiles).

    `tonic` is spelled with sharps ("C#", never "Db"), `mode` is "major" or "minor", `strength` the correlation with
    the profile. Silence gives nulls and strength 0.

    Source: Faraldo et al., "Key Estimation in Electronic Dance Music", ECIR 2016.
    """

    name = "key"
    type = columns.KEY
    reads = {"pcm": pcm.PCM}

    @property
    def model(self) -> str:
        """Essentia's version and the stage's revision."""
        return f"essentia-{self._version}+{super().model}"

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
        return self.own(tonic=_SHARPS.get(tonic, tonic), mode=mode, strength=float(np.clip(strength, 0.0, 1.0)))
