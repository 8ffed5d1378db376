"""Windows of a song decoded together say what they say one after the other."""

from collections.abc import Callable
from difflib import SequenceMatcher

import numpy as np
import pytest

from stages import pcm
from stages.transcript import Transcript
from tests.support.audio import silence
from tests.support.tracks import load, measure, ready


def heard(stage: Transcript, stem: np.ndarray, language: str | None = None) -> dict:
    vocals = {"has_vocals": True}
    return measure(stage, vocal_stem=pcm.encode(stem), vocals=vocals, language=language)["transcript"]


def words(row: dict) -> list[str]:
    return [word.strip(".,!?").lower() for word in row["text"].split()]


@pytest.fixture(scope="module")
def song(audio: Callable) -> np.ndarray:
    return load(audio("demo-songs", "audio_ace_step_1_5_split_4b-1.mp3"), seconds=70.0)


def test_a_song_of_several_windows(weights, song):
    together, alone = (heard(ready(Transcript, weights, batch_windows=n, beam_size=1), song) for n in (4, 1))
    assert SequenceMatcher(None, words(together), words(alone), autojunk=False).ratio() > 0.7
    assert together["language"] == alone["language"] == "en"
    times = [word[at] for line in together["segments"] for word in line["words"] for at in ("start_s", "end_s")]
    assert len(times) > 50
    assert times == sorted(times)
    assert times[-1] <= 70.0
    starts = {word["text"].lower(): word["start_s"] for line in alone["segments"] for word in line["words"]}
    once = [w for w in starts if [x.lower() for x in alone["text"].split()].count(w) == 1]
    apart = [
        abs(word["start_s"] - starts[word["text"].lower()])
        for line in together["segments"]
        for word in line["words"]
        if word["text"].lower() in once
    ]
    assert np.median(apart) < 0.2


def test_silence_and_noise_say_nothing(weights):
    stage = ready(Transcript, weights, batch_windows=4)
    noise = np.random.default_rng(0).normal(0, 0.05, (2, 44_100 * 5)).astype(np.float32)
    for nothing in (silence(5.0), noise):
        row = heard(stage, nothing)
        assert row["text"] == ""
        assert row["language"] is None
