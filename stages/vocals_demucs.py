"""Vocals of the full profile, and the other stems: Hybrid Transformer Demucs."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stages import base, pcm, vocals
from stages.libraries import Library
from stages.nets.demucs import Demucs

_SOURCES = {"bass_stem": "bass", "drum_stem": "drums", "other_stem": "other", "vocal_stem": "vocals"}


class VocalsDemucsParams(vocals.VocalsParams):
    """When a track counts as sung, and which separator.

    Attributes:
        separator: entry of the model store: htdemucs, or htdemucs-ft, which is a little better. If only the vocals are
            needed it is just as fast, because only one of its four networks runs; all four stems take four times as
            long.
    """

    separator: str = "htdemucs"


class VocalsDemucs(vocals.Vocals):
    """Separates the vocals with Demucs, at full bandwidth, and looks for a voice in them with Silero VAD.

    The working columns are the four stems, canonical PCM of the track's length. Their sum is only roughly the mix.
    """

    working = dict.fromkeys(_SOURCES, pcm.PCM)
    libraries = (Library("Demucs", module="demucs", package="demucs", extra="separation"),)
    revision = 1  # independent of the Spleeter engine's
    Params = VocalsDemucsParams

    @property
    def models(self) -> tuple[str, ...]:
        """The separator."""
        return (self.params.separator,)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the separator."""
        base.Stage.setup(self, weights)
        self._demucs = Demucs.load(weights[self.params.separator].path, self.device)

    def process(self, track: base.Track) -> dict[str, Any]:
        """Measure the vocals of the `pcm` column; keep those stems that later stages read."""
        self._separator = backing = _WithBacking(self._demucs, self.wanted)
        return super().process(track) | backing.stems()


class _WithBacking:
    """Separates the vocals, and keeps the other wanted stems of the same separation."""

    def __init__(self, demucs: Demucs, wanted: frozenset[str]) -> None:
        self._demucs = demucs
        self._encoded: dict[str, list[bytes]] = {stem: [] for stem in sorted(wanted - {"vocal_stem"})}

    def separate(self, mix: np.ndarray) -> Iterator[np.ndarray]:
        """Float32 [2, frames] at 44.1 kHz to its vocals, in consecutive pieces [2, some frames]."""
        sources = ["vocals", *(_SOURCES[stem] for stem in self._encoded)]
        for sung, *rest in self._demucs.separate(mix, sources):
            for encoded, piece in zip(self._encoded.values(), rest, strict=True):
                encoded.append(pcm.encode(piece))
            yield sung

    def stems(self) -> dict[str, bytes]:
        """Canonical PCM by column, once `separate` is exhausted."""
        return {stem: b"".join(encoded) for stem, encoded in self._encoded.items()}
