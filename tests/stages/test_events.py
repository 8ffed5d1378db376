from collections.abc import Callable

import numpy as np
import pytest

from pipeline.models.convert import protobuf
from stages import pcm
from stages.events import Events
from tests.support import audio as signals
from tests.support.tracks import load, measure, ready


@pytest.fixture(scope="module")
def events(weights: Callable) -> Events:
    return ready(Events, weights)


def heard(events: Events, recording: np.ndarray) -> dict:
    return measure(events, pcm=pcm.encode(recording))["events"]


@pytest.mark.parametrize("clip", ["en/counting.wav", "ja/pangrama.wav"])
def test_talk_is_speech(events: Events, audio: Callable, clip: str) -> None:
    row = heard(events, load(audio("speech-clips", clip)))
    assert row["speech"] > 0.9
    assert row["live"] < 0.1
    assert row["model"].startswith("yamnet@")


@pytest.mark.parametrize("track", ["calm_acoustic_1.opus", "energetic_electronic_2.opus"])
def test_studio_instrumentals_are_neither_speech_nor_live(events: Events, audio: Callable, track: str) -> None:
    row = heard(events, load(audio("demo-music", track), 15.0))
    assert max(row["live"], row["applause"], row["speech"], row["singing"]) < 0.05


def test_songs_score_higher_for_singing_than_instrumentals(events: Events, audio: Callable) -> None:
    song = heard(events, load(audio("demo-songs", "audio_ace_step_1_t2a_song-1.mp3"), 30.0))
    music = heard(events, load(audio("demo-songs", "audio_ace_step_1_t2a_instrumentals-1.mp3"), 30.0))
    assert song["singing"] > 5 * music["singing"]


def test_music_is_what_music_sounds_like(events: Events, audio: Callable) -> None:
    """The scales of the quantised input and output fit: the net's best class is right and its score sensible."""
    recording = pcm.mono(pcm.encode(load(audio("demo-music", "calm_acoustic_1.opus"), 10.0)), 16_000)
    mean = events._net(recording).mean(axis=0)
    assert events._net.classes[int(mean.argmax())] == "Music"
    assert mean.max() > 0.8
    assert np.median(mean) < 0.01


def test_an_audience_counts_although_it_is_short_and_speech_by_its_share(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = events._net

    class Concert:
        def __call__(self, audio: np.ndarray) -> np.ndarray:
            patches = np.zeros((100, len(net.classes)), dtype=np.float32)
            patches[:10, net.classes.index("Cheering")] = 0.9
            patches[:10, net.classes.index("Speech")] = 0.9
            patches[:2, net.classes.index("Applause")] = 0.9
            return patches

    monkeypatch.setattr(events, "_net", Concert())
    row = heard(events, signals.silence(1.0))
    assert row["live"] == pytest.approx(0.9)
    assert row["applause"] == 0.0
    assert row["speech"] == pytest.approx(0.09)


@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.0, 3.3])
def test_short_and_silent_recordings(events: Events, seconds: float) -> None:
    row = heard(events, signals.silence(seconds))
    assert all(0 <= row[event] < 0.1 for event in ("live", "applause", "singing"))
    assert row == heard(events, signals.silence(seconds))


def test_protobuf_fields() -> None:
    message = b"\x08\x96\x01\x12\x03abc\x1d\x00\x00\x80\x3f\x12\x00"
    assert protobuf.fields(message) == {1: [150], 2: [b"abc", b""], 3: [b"\x00\x00\x80\x3f"]}
    with pytest.raises(ValueError, match="wire type 3"):
        protobuf.fields(b"\x0b")
