"""The interface to recordings. `training` decodes no audio itself: the pipeline passes an `AudioSource`."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

RATE_HZ = 44_100
FULL_SCALE = 32_767  # a sample of 1.0


@dataclass(frozen=True)
class Recording:
    """A song that can be decoded.

    Attributes:
        track_id: digest of the file's bytes.
        samples: length in samples at 44.1 kHz.
    """

    track_id: str
    samples: int


class UnreadableAudio(Exception):  # noqa: N818 - it says what kind of problem
    """A recording that cannot be decoded, or is not the one that was curated; the message names the file.

    Attributes:
        track_id: the recording.
    """

    def __init__(self, track_id: str, message: str) -> None:
        super().__init__(message)
        self.track_id = track_id


class AudioSource(Protocol):
    """Recordings in the order of their track ids, independent of how they are stored."""

    @property
    def recordings(self) -> Sequence[Recording]:
        """Each recording once."""

    @property
    def fingerprint(self) -> str:
        """Identifies this set of recordings: see `fingerprint`."""

    def read(self, index: int) -> np.ndarray:
        """Decode a recording: int16 [2, samples] at 44.1 kHz, exactly `Recording.samples` long and read-only.

        Thread-safe.

        Raises:
            UnreadableAudio: it cannot be decoded, or its file has changed.
        """


def fingerprint(recordings: Iterable[Recording]) -> str:
    """Hash of which recordings there are and how long they are."""
    digest = hashlib.blake2b(digest_size=16)
    for recording in recordings:
        digest.update(f"{recording.track_id} {recording.samples}\n".encode())
    return digest.hexdigest()


def held_out(recordings: Iterable[Recording], share: float) -> np.ndarray:
    """Which recordings to validate on, bool [recordings].

    Depends only on a song's bytes: not on the other songs, nor on the kind of training.
    """
    keys = [
        int.from_bytes(hashlib.blake2b(recording.track_id.encode(), digest_size=8).digest(), "little")
        for recording in recordings
    ]
    return np.array(keys, np.uint64) < np.uint64(share * 2**64)
