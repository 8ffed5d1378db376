"""Song structure by self-similarity: where the parts begin, which of them recur, and their labels."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from schemas import columns
from stages import base, pcm
from stages.base import Stage, Track
from stages.signal.section_features import SectionFeatures
from stages.signal.section_labels import Part, label_parts
from stages.signal.voice_activity import RATE_HZ as VOICE_RATE_HZ
from stages.signal.voice_activity import voiced_spans

_GRID_S = 0.5  # grid step where there are no beats
_KERNEL_S = 12.0  # how much music before and after a boundary is compared
_PROMINENCE = 0.2  # of the largest novelty: how far a peak must stand out
_MIN_NOVELTY = 0.05  # below it are the chance fluctuations of stationary noise
_SAME = 0.6  # cosine distance up to which two parts are of one kind


class SectionsParams(base.Params):
    """How finely a song is divided.

    Attributes:
        min_s: length of the shortest part, in seconds.
    """

    min_s: float = 8.0


class Sections(Stage):
    """Boundaries by checkerboard novelty, repetition by clustering, labels by rules (`stages.signal.section_labels`).

    Chroma and MFCC are averaged over beats (half seconds where there are none). Their cosine self-similarity,
    correlated along its diagonal with a checkerboard kernel, peaks where the music before and after differ (Foote,
    "Automatic audio segmentation using a measure of audio novelty", ICME 2000). Boundaries move to the nearest
    downbeat; parts with similar mean features are of one kind.

    Parts are contiguous, cover the track, and last `min_s` seconds or longer unless the track itself is shorter.
    Labels are All-In-One's: intro, verse, chorus, bridge, inst, break, outro ("solo" is not distinguished from "inst").
    """

    name = "sections"
    type = columns.SECTIONS
    reads = {"pcm": pcm.PCM}
    reads_if_present = {
        "rhythm": pa.struct([columns.RHYTHM.field("beats_s"), columns.RHYTHM.field("downbeats_s")]),
        "vocals": pa.struct([columns.VOCALS.field("has_vocals")]),
        "vocal_stem": pcm.PCM,
    }
    Params = SectionsParams

    @property
    def model(self) -> str:
        """The method and its revision; no network is involved."""
        return f"songmill.sections.self-similarity@r{self.revision}"

    def process(self, track: Track) -> dict[str, Any]:
        """Divide the `pcm` column into labelled parts."""
        duration_s = pcm.duration_s(track["pcm"])
        if duration_s == 0:
            return self.own(items=[])
        features = SectionFeatures(track["pcm"])
        bounds_s = self._bounds(features, track.get("rhythm") or {}, duration_s)
        kinds = _kinds(features.means(bounds_s))
        measured = zip(kinds, features.levels_db(bounds_s), _vocal_shares(track, bounds_s), strict=True)
        parts = [Part(bounds_s[i], bounds_s[i + 1], *figures) for i, figures in enumerate(measured)]
        return self.own(
            items=[
                {"start_s": part.start_s, "end_s": part.end_s, "label": label}
                for part, label in zip(parts, label_parts(parts), strict=True)
            ]
        )

    def _bounds(self, features: SectionFeatures, rhythm: dict[str, Any], duration_s: float) -> list[float]:
        """Seconds at which parts begin, and the end of the track."""
        from scipy.signal import find_peaks  # here because scipy takes seconds to import and planning does not need it

        grid_s = _grid(rhythm.get("beats_s") or [], duration_s)
        step_s = duration_s / (len(grid_s) - 1)
        novelty = _novelty(features.means(grid_s), round(_KERNEL_S / step_s))
        peaks, _ = find_peaks(
            novelty,
            distance=max(1, round(self.params.min_s / step_s)),
            prominence=max(_MIN_NOVELTY, _PROMINENCE * novelty.max()),
        )
        bounds_s = [0.0]
        for peak in peaks:
            at_s = _nearest(grid_s[peak], rhythm.get("downbeats_s") or [])
            if min(at_s - bounds_s[-1], duration_s - at_s) >= self.params.min_s:
                bounds_s.append(at_s)
        return [*bounds_s, duration_s]


def _grid(beats_s: list[float], duration_s: float) -> list[float]:
    """The beats, with half seconds before the first and after the last one, from 0 to the duration."""
    beats_s = [beat_s for beat_s in beats_s if 0 < beat_s < duration_s]
    first_s, last_s = (beats_s[0], beats_s[-1]) if beats_s else (duration_s, duration_s)
    before_s = np.arange(0.0, first_s - _GRID_S / 2, _GRID_S).tolist() or [0.0]
    after_s = np.arange(last_s + _GRID_S, duration_s - _GRID_S / 2, _GRID_S).tolist()
    return [*before_s, *beats_s, *after_s, duration_s]


def _novelty(blocks: np.ndarray, half: int) -> np.ndarray:
    """Checkerboard correlation at the start of each block: `blocks` [n, features] to [n]."""
    count = len(blocks)
    half = min(half, count)
    similarity = np.pad(blocks @ blocks.T, half)
    side = np.arange(-half, half) + 0.5
    taper = np.exp(-2 * (side / max(half, 1)) ** 2)
    kernel = np.outer(np.sign(side) * taper, np.sign(side) * taper)
    windows = (similarity[i : i + 2 * half, i : i + 2 * half] for i in range(count))
    return np.maximum(0.0, np.array([np.sum(kernel * window) for window in windows]) / kernel.size)


def _kinds(means: np.ndarray) -> list[int]:
    """A number for each part, equal for parts that sound alike (average linkage on cosine distance)."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(means) < 2:
        return [0] * len(means)
    return fcluster(linkage(means, method="average", metric="cosine"), _SAME, criterion="distance").tolist()


def _vocal_shares(track: Track, bounds_s: list[float]) -> list[float | None]:
    """Share of each part in which the vocal stem has a voice; 0 where `vocals` found none, None without a stem."""
    vocals = track.get("vocals")
    if vocals and vocals["has_vocals"] is False:
        return [0.0] * (len(bounds_s) - 1)
    stem = track.get("vocal_stem")
    if stem is None:
        return [None] * (len(bounds_s) - 1)
    voice = pcm.mono(stem, VOICE_RATE_HZ)
    voiced = np.zeros(len(voice))
    for span in voiced_spans(voice):
        voiced[span] = 1.0
    samples = [int(bound_s * VOICE_RATE_HZ) for bound_s in bounds_s]
    return [float(voiced[start:end].mean()) for start, end in pairwise(samples)]


def _nearest(time_s: float, candidates_s: list[float]) -> float:
    """The candidate closest to a time if it lies within two seconds, else the time itself."""
    closest_s = min(candidates_s, key=lambda candidate_s: abs(candidate_s - time_s), default=time_s)
    return closest_s if abs(closest_s - time_s) <= 2.0 else time_s
