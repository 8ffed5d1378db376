"""From segments to batches: who is held out, whose voices are heard together, which part of each."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from training.run.run_folder import RunProblem
from training.speaker.config import VoicesConfig
from training.speaker.segment_store import SegmentStore, Voice

_MOST_HELD_OUT = 200  # singers; their voices are compared each with each


@dataclass(frozen=True)
class VoiceBatch:
    """Segments of one length.

    Attributes:
        log_mel: float32 [N, bands, frames].
        singers: number of each one's singer, int64 [N].
        track_ids: of each.
    """

    log_mel: Tensor
    singers: Tensor
    track_ids: Sequence[str]


@dataclass(frozen=True)
class _SegmentRef:
    """A segment on disk."""

    song: Voice
    number: int


class Voices:
    """The singers of a run, those to learn from and those held out, and batches that follow from seed and step alone.

    Args:
        segments: of the songs.
        config: which of them, and how they are batched.
        frame_hz: of the log-mel bands.

    Attributes:
        singers: to learn from, by label.
        held_out: to be compared, by label.

    Raises:
        RunProblem: there are fewer than two singers to tell apart.
    """

    def __init__(self, segments: SegmentStore, config: VoicesConfig, frame_hz: float) -> None:
        self.songs = [song for song in segments.songs() if song.segments]
        self.config = config
        self._segments, self._frame_hz = segments, frame_hz
        self._places = _by_singer(self.songs)
        self.held_out = _held_out(self._places, config.validation_share)
        self.singers = sorted(self._places.keys() - set(self.held_out))
        if len(self.singers) < 2:
            raise RunProblem(
                f"{len(self.singers)} singer to learn from: at least two are needed, told apart by the column that "
                "--label names, of songs with vocals"
            )

    def batch(self, seed: int, step: int) -> VoiceBatch:
        """`config.singers` singers, drawn without repetition, `config.segments` segments of each."""
        rng = np.random.default_rng([seed, step])
        drawn = rng.permutation(len(self.singers))[: self.config.singers]
        frames = round(rng.uniform(*self.config.crop_s) * self._frame_hz)
        places = [(int(singer), place) for singer in drawn for place in self._draw(self.singers[singer], rng)]
        heard = [self._varied(_crop(self._read(place), frames, rng), rng) for _, place in places]
        return VoiceBatch(
            torch.from_numpy(np.stack(heard)),
            torch.tensor([singer for singer, _ in places]),
            [place.song.track_id for _, place in places],
        )

    def validation(self) -> list[VoiceBatch]:
        """Segments of those held out, whole and one at a time, for their lengths differ."""
        return [
            VoiceBatch(torch.from_numpy(self._read(place))[None], torch.tensor([number]), [place.song.track_id])
            for number, singer in enumerate(self.held_out)
            for place in _interleaved(self._places[singer])[: self.config.validation_segments]
        ]

    def fingerprint(self) -> str:
        """Hash of the songs, their segments and their singers."""
        known = "\n".join(f"{song.track_id}\t{song.label}\t{song.file}\t{song.segments}" for song in self.songs)
        return hashlib.blake2b(known.encode(), digest_size=16).hexdigest()

    def _draw(self, singer: str, rng: np.random.Generator) -> list[_SegmentRef]:
        """From as many songs as there are, each segment once before any comes again."""
        songs = list(self._places[singer].values())
        shuffled = {str(i): [songs[i][j] for j in rng.permutation(len(songs[i]))] for i in rng.permutation(len(songs))}
        places = _interleaved(shuffled)
        return (places * math.ceil(self.config.segments / len(places)))[: self.config.segments]

    def _read(self, place: _SegmentRef) -> np.ndarray:
        return self._segments.read(place.song, place.number)

    def _varied(self, log_mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Another equalisation; a stretch of frames and of bands at the level of the mean."""
        bands, frames = log_mel.shape
        nepers = rng.uniform(-1, 1) * self.config.tilt_db * math.log(10) / 20
        varied = log_mel + np.linspace(-nepers / 2, nepers / 2, bands, dtype=np.float32)[:, None]
        mean = varied.mean()
        varied[_stretch(bands, self.config.masked_share, rng)] = mean
        varied[:, _stretch(frames, self.config.masked_share, rng)] = mean
        return varied


def _by_singer(songs: Sequence[Voice]) -> dict[str, dict[str, list[_SegmentRef]]]:
    """Label -> track id -> segments."""
    singers: defaultdict[str, dict[str, list[_SegmentRef]]] = defaultdict(dict)
    for song in songs:
        singers[song.label][song.track_id] = [_SegmentRef(song, number) for number in range(song.segments)]
    return dict(singers)


def _held_out(places: dict[str, dict[str, list[_SegmentRef]]], share: float) -> list[str]:
    """A share of the singers in an order of their own: two at least, and two left, or none.

    They have two segments or more; no pair of one can be the same singer's.
    """
    able = [singer for singer, songs in places.items() if sum(map(len, songs.values())) > 1]
    wanted = min(max(2, round(share * len(places))), _MOST_HELD_OUT) if share else 0
    count = min(wanted, len(able), len(places) - 2)
    if count < 2:
        return []
    return sorted(sorted(able, key=_rank)[:count])


def _rank(singer: str) -> bytes:
    return hashlib.blake2b(singer.encode(), digest_size=8).digest()


def _interleaved(songs: dict[str, list[_SegmentRef]]) -> list[_SegmentRef]:
    """One of each song, then the next of each."""
    return [place for row in zip_longest(*songs.values()) for place in row if place]


def _crop(log_mel: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A part of that length; a shorter voice begins anew until it is as long."""
    have = log_mel.shape[1]
    if have < frames:
        return np.tile(log_mel, math.ceil(frames / have))[:, :frames]
    start = rng.integers(have - frames + 1)
    return log_mel[:, start : start + frames].copy()


def _stretch(length: int, share: float, rng: np.random.Generator) -> slice:
    width = rng.integers(int(share * length) + 1)
    start = rng.integers(length - width + 1)
    return slice(start, start + width)
