"""Song structure of the full profile: All-In-One on the separated stems."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas import columns
from stages import base, pcm
from stages.libraries import Library
from stages.nets.all_in_one import AllInOne

_STEMS = {"bass": "bass_stem", "drums": "drum_stem", "other": "other_stem", "vocals": "vocal_stem"}


class SectionsAllInOneParams(base.Params):
    """Which checkpoint.

    Attributes:
        model: entry of the model store: all-in-one-fold0, or all-in-one, the mean of all eight folds and eight times
            slower.
    """

    model: str = "all-in-one-fold0"


class SectionsAllInOne(base.Stage):
    """Segments and their functions by All-In-One, on the stems separated by the `demucs` engine of `vocals`.

    Parts are contiguous and cover the track. Labels: start, intro, verse, chorus, bridge, inst, solo, break, outro,
    end, where "start" and "end" are the silence before the first and after the last sound. `bpm` is the network's own
    estimate of the tempo; rows where it contradicts `rhythm` are flagged.
    """

    name = "sections"
    type = columns.SECTIONS
    reads = dict.fromkeys(_STEMS.values(), pcm.PCM)
    libraries = (Library("All-In-One", module="allin1_infer", package="all-in-one-infer", extra="sections"),)
    Params = SectionsAllInOneParams

    @property
    def models(self) -> tuple[str, ...]:
        """The checkpoint, or the ensemble."""
        return (self.params.model,)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the checkpoint or the ensemble."""
        super().setup(weights)
        self._network = AllInOne.load(weights[self.params.model].path, self.device)

    def process(self, track: base.Track) -> dict[str, Any]:
        """Divide the track into labelled parts, from its four stems."""
        found = self._network.analyse({name: _mono(track[column]) for name, column in _STEMS.items()})
        items = [{"start_s": part.start_s, "end_s": part.end_s, "label": part.label} for part in found.segments]
        return self.own(items=items, bpm=found.bpm)


def _mono(stem: Any) -> np.ndarray:
    """Canonical PCM to int16 [frames], rounded towards zero as in madmom's mono mix of a stem's file."""
    frames = np.frombuffer(stem, dtype="<i2").reshape(-1, pcm.CHANNELS)
    return np.trunc(frames.mean(axis=1, dtype=np.float32)).astype(np.int16)
