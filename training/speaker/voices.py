"""Batches of singers: who is held out, who shares a batch, and which crops are used."""

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

_MOST_HELD_OUT = 200  # singers; all pairs of their segments are compared


@dataclass(frozen=True)
class VoiceBatch:
    """Crops of segments, equally long.

    Attributes:
        log_mel: float32 [N, bands, frames].
        singers: int64 [N], number of each one's singer.
        track_ids: song of each.
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
    """The training and held-out singers of a run, and batches that depend only on seed and step.

    Args:
        segments: the run's segments.
        config: batching, augmentation and held-out share.
        frame_hz: frame rate of the log-mel bands.

    Attributes:
        songs: songs with at least one segment.
        singers: labels of the training singers, sorted.
        held_out: labels of the held-out singers, sorted.

    Raises:
        RunProblem: fewer than two singers are left to train on, or the list of songs is missing.
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
                f"{len(self.singers)} singer to learn from: at least two are needed. They are told apart by the column "
                "that --label names, among songs with vocals"
            )

    def batch(self, seed: int, step: int) -> VoiceBatch:
        """A training batch: `config.singers` different singers with `config.segments` segments each."""
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
        """Whole segments of the held-out singers, one per batch since their lengths differ."""
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
        """Segments from as many songs as possible; none is repeated before all have been used."""
        songs = list(self._places[singer].values())
        shuffled = {str(i): [songs[i][j] for j in rng.permutation(len(songs[i]))] for i in rng.permutation(len(songs))}
        places = _interleaved(shuffled)
        return (places * math.ceil(self.config.segments / len(places)))[: self.config.segments]

    def _read(self, place: _SegmentRef) -> np.ndarray:
        return self._segments.read(place.song, place.number)

    def _varied(self, log_mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment: tilt the spectrum, and set a run of frames and one of bands to the mean."""
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
    """The held-out singers: a share of all in hash order, at least two and leaving at least two, or none.

    Only singers with two or more segments qualify, since others form no same-singer pair.
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
    """The first segment of each song, then the second of each, and so on."""
    return [place for row in zip_longest(*songs.values()) for place in row if place]


def _crop(log_mel: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop of `frames` frames; shorter segments are repeated to that length."""
    have = log_mel.shape[1]
    if have < frames:
        return np.tile(log_mel, math.ceil(frames / have))[:, :frames]
    start = rng.integers(have - frames + 1)
    return log_mel[:, start : start + frames].copy()


def _stretch(length: int, share: float, rng: np.random.Generator) -> slice:
    width = rng.integers(int(share * length) + 1)
    start = rng.integers(length - width + 1)
    return slice(start, start + width)
