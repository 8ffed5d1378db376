"""Stages whose results are derived from the row's id, for measuring songmill's own overhead at scale.

Given by dotted path (`decode.engine=benchmarks.recorded:Decode`) they replace the real stages; no file is opened.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from schemas import columns
from stages.base import Resources, Stage, Track, TrackError
from stages.fingerprint import FINGERPRINT, SKETCH_SIZE

_NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
_TAGS = ("rock", "pop", "techno", "ambient", "guitar", "piano", "female vocal", "fast", "slow", "classical")
_LANGUAGES = ("en", "es", "de", "fr", "ja", "ko")
_BLOCK = 1000
_RECORDED = np.random.default_rng(1).random((4096, 8))  # figures of so many songs
_SKETCH = np.random.default_rng(2).integers(0, 2**32, SKETCH_SIZE, dtype=np.uint32)


class BrokenRecordError(TrackError):
    """Every five-thousandth song, so that there are failures."""


class Recorded(Stage):
    """A stage that computes a whole block at once."""

    resources = Resources(batch_rows=_BLOCK)
    reads: ClassVar = {"row_id": pa.string()}

    def run(self, batch: pa.Table) -> dict[str, list[Any]]:
        """The owned column; working columns are not needed here."""
        rows = [self.figures(int(row_id[:16], 16)) for row_id in batch["row_id"].to_pylist()]
        values = [{**row, "model": self.model} for row in rows]
        return {self.column: values, **{name: [0] * len(rows) for name in self.wanted}}

    def process(self, track: Track) -> dict[str, Any]:
        """The owned column of one row."""
        return self.own(**self.figures(int(track["row_id"][:16], 16)))

    @abstractmethod
    def figures(self, song: int) -> dict[str, Any]:
        """The recorded result for a song."""


class Decode(Recorded):
    """Lengths of two to five minutes; every five-thousandth file is broken."""

    name = "decode"
    column = "audio"
    type = columns.AUDIO
    working: ClassVar = {"native": pa.int8(), "pcm": pa.int8()}

    def figures(self, song: int) -> dict[str, Any]:
        """Length and format."""
        if song % 5000 == 0:
            raise BrokenRecordError(f"song {song} is on record as broken")
        return {"duration_s": 120 + 180 * _of(song)[0], "sample_rate_hz": 44100, "channels": 2, "codec": "mp3"}


class Quality(Recorded):
    """Bandwidths, of which one in twenty is below the usual threshold."""

    name = "quality"
    type = columns.QUALITY
    reads: ClassVar = {**Recorded.reads, "native": pa.int8()}

    def figures(self, song: int) -> dict[str, Any]:
        """Signal quality."""
        figures = _of(song)
        bandwidth_hz = 6000 + 14000 * figures[1] if figures[1] > 0.05 else 5000.0
        return {
            "loudness_lufs": -24 + 18 * figures[2],
            "true_peak_dbtp": -figures[3],
            "clipped_ratio": 0.0,
            "silent_ratio": 0.01,
            "bandwidth_hz": max(bandwidth_hz, 7000.0) if figures[1] > 0.05 else bandwidth_hz,
            "stereo_correlation": 0.5,
            "noise_floor_db": -70.0,
        }


class Fingerprint(Recorded):
    """Sketches of realistic size; every fiftieth song shares one with another."""

    name = "fingerprint"
    type = FINGERPRINT
    scan_only = True
    reads: ClassVar = {**Recorded.reads, "native": pa.int8()}

    def figures(self, song: int) -> dict[str, Any]:
        """The sketch."""
        key = song // 100 % 5000 if song % 50 == 0 else song % 2**32
        return {"hashes": np.sort(_SKETCH ^ np.uint32(key))}


class Vocals(Recorded):
    """Three songs of four are sung."""

    name = "vocals"
    type = columns.VOCALS
    reads: ClassVar = {**Recorded.reads, "pcm": pa.int8()}

    def figures(self, song: int) -> dict[str, Any]:
        """Whether somebody sings, and how much."""
        share = _of(song)[4]
        return {"has_vocals": share > 0.25, "active_ratio": share}


class Transcript(Recorded):
    """A few lines."""

    name = "transcript"
    type = columns.TRANSCRIPT
    reads: ClassVar = {**Recorded.reads, "pcm": pa.int8()}

    def figures(self, song: int) -> dict[str, Any]:
        """What is sung."""
        language = _one(_LANGUAGES, song)
        return {"text": "la la la\n" * 8, "language": language, "avg_logprob": -_of(song)[5], "segments": []}


class Rhythm(Recorded):
    """Tempo."""

    name = "rhythm"
    type = columns.RHYTHM
    reads: ClassVar = {**Recorded.reads, "pcm": pa.int8()}

    def figures(self, song: int) -> dict[str, Any]:
        """Tempo and a bar of beats."""
        bpm = 60 + 120 * _of(song)[6]
        return {"bpm": bpm, "confidence": 0.8, "beats_s": [0.0, 0.5, 1.0, 1.5], "time_signature": 4}


class Key(Recorded):
    """Key."""

    name = "key"
    type = columns.KEY
    reads: ClassVar = {**Recorded.reads, "pcm": pa.int8()}

    def figures(self, song: int) -> dict[str, Any]:
        """Tonic and mode."""
        return {"tonic": _one(_NOTES, song), "mode": ("major", "minor")[song % 2], "strength": _of(song)[7]}


class Tags(Recorded):
    """Three tags."""

    name = "tags"
    type = columns.TAGS
    reads: ClassVar = {**Recorded.reads, "pcm": pa.int8()}

    def figures(self, song: int) -> dict[str, Any]:
        """Names and scores."""
        return {"names": [_one(_TAGS, song >> shift) for shift in (3, 7, 11)], "scores": [0.9, 0.5, 0.3]}


def stages() -> dict[str, dict[str, str]]:
    """The stages of a run, as a configuration has them."""
    classes = (Decode, Quality, Fingerprint, Vocals, Transcript, Rhythm, Key, Tags)
    return {kind.name: {"engine": f"{kind.__module__}:{kind.__name__}"} for kind in classes}


def _of(song: int) -> list[float]:
    return _RECORDED[song % len(_RECORDED)].tolist()


def _one(values: Sequence[str], song: int) -> str:
    return values[song // 7 % len(values)]
