"""Previews of real songs: what comes back is the song, from where they say, for as long as they say."""

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import columns
from stages import pcm
from stages.preview import NothingToHear, Preview, PreviewParams, shortened
from tests.support.audio import silence, tone
from tests.support.tracks import load, measure

RATE_HZ = 48_000


@pytest.fixture(scope="module")
def song(audio: Callable[[str, str], Path]) -> np.ndarray:
    return load(audio("demo-music", "calm_acoustic_1.opus"))


def preview(sound: np.ndarray, **params: Any) -> dict[str, Any]:
    return measure(Preview(PreviewParams(**params)), pcm=pcm.encode(sound))["preview"]


def decoded(data: bytes) -> np.ndarray:
    """Float32 [2, frames] at 48 kHz."""
    with av.open(io.BytesIO(data)) as container:
        assert (container.format.name, container.streams.audio[0].codec.canonical_name) == ("ogg", "opus")
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def rms(sound: np.ndarray) -> Any:
    return np.sqrt(np.square(sound).mean(axis=-1))


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    length = min(one.shape[1], other.shape[1])
    return float(np.corrcoef(one[:, :length].mean(0), other[:, :length].mean(0))[0, 1])


def test_it_is_the_song_from_where_it_says(song: np.ndarray):
    made = preview(song, seconds=8)
    assert pa.array([made], columns.PREVIEW)[0].as_py() == made
    assert (made["codec"], made["duration_s"], made["model"]) == ("opus", 8.0, "songmill.preview@r1")
    start = round(made["start_s"] * pcm.RATE_HZ)
    source = soxr.resample(song[:, start : start + 8 * pcm.RATE_HZ].T, pcm.RATE_HZ, RATE_HZ).T
    back = decoded(made["data"])
    assert back.shape == (2, 8 * RATE_HZ)
    assert likeness(back, source) > 0.97
    assert likeness(back[:, 480:], source) < 0.8  # so that 10 ms of delay would be noticed
    assert len(made["data"]) == pytest.approx(8 * 32_000 / 8, rel=0.25)


def test_it_begins_where_the_song_is_loudest():
    sound = silence(30)
    sound[:, 20 * 44_100 : 24 * 44_100] = tone(440, 4)
    assert preview(sound, seconds=4)["start_s"] == 20.0
    late = np.concatenate([silence(9.7), tone(440, 2)], axis=1)
    assert preview(late, seconds=3)["start_s"] == pytest.approx(8.7)  # as late as it can, and not later


def test_it_is_in_stereo(song: np.ndarray):
    left = song.copy()
    left[1] = 0
    loud, quiet = rms(decoded(preview(left, seconds=2)["data"]))
    assert quiet < loud / 100


@pytest.mark.parametrize("seconds", [0.01, 0.4, 3.0])
def test_a_short_song_is_heard_whole(song: np.ndarray, seconds: float):
    short = song[:, 44_100 * 5 : 44_100 * 5 + round(seconds * 44_100)]
    made = preview(short)
    assert (made["start_s"], made["duration_s"]) == (0.0, short.shape[1] / 44_100)
    assert decoded(made["data"]).shape[1] == pytest.approx(seconds * RATE_HZ, abs=2)


def test_mono_stays_in_the_middle_and_silence_silent(song: np.ndarray):
    mono = np.broadcast_to(song.mean(0), song.shape)
    left, right = decoded(preview(mono, seconds=3)["data"])
    assert rms(left - right) < rms(left) / 50
    quiet = preview(silence(5), seconds=2)
    assert quiet["start_s"] == 0.0
    assert np.abs(decoded(quiet["data"])).max() < 1e-4


def test_no_samples_are_nothing_to_hear():
    with pytest.raises(NothingToHear):
        preview(silence(0))


_ELSEWHERE = """
import sys, hashlib
from stages.preview import Preview
print(hashlib.sha256(Preview().process({"pcm": sys.stdin.buffer.read()})["preview"]["data"]).hexdigest())
"""


def test_the_same_song_has_the_same_bytes_in_another_process(song: np.ndarray):
    sound = pcm.encode(song[:, : 44_100 * 6])
    again = subprocess.run([sys.executable, "-c", _ELSEWHERE], input=sound, capture_output=True, check=True)
    here = hashlib.sha256(preview(song[:, : 44_100 * 6])["data"]).hexdigest()
    assert again.stdout.decode().strip() == here


@settings(max_examples=25)
@given(st.integers(1, 200_000), st.floats(1, 4))
def test_where_and_how_long_always_fit_the_song(frames: int, seconds: float):
    sound = tone(220, frames / 44_100)
    made = preview(sound, seconds=seconds, kbps=16)
    assert 0 <= made["start_s"] <= made["start_s"] + made["duration_s"] <= sound.shape[1] / 44_100 + 1e-9
    assert decoded(made["data"]).shape[1] == pytest.approx(made["duration_s"] * RATE_HZ, abs=2)


def test_its_beginning_is_the_same_sound(song: np.ndarray):
    made = preview(song, seconds=8)["data"]
    beginning = decoded(shortened(made, 3.0))
    assert 2.95 * RATE_HZ < beginning.shape[1] <= 3 * RATE_HZ
    np.testing.assert_allclose(beginning, decoded(made)[:, : beginning.shape[1]], atol=1e-6)
    assert len(shortened(made, 3.0)) < len(made) / 2
    assert shortened(made, 3.0) == shortened(made, 3.0)
