"""Boundaries, repetition and names of the parts of songs."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import pcm
from stages.sections import Sections
from stages.signal.section_labels import Part, label_parts
from tests.support.audio import clicks, mix, noise, silence, tone
from tests.support.songs import load

_LABELS = {"intro", "verse", "chorus", "bridge", "inst", "break", "outro"}


def measure(audio, **row):
    stage = Sections()
    stage.setup({})
    return stage.process({"pcm": audio if isinstance(audio, bytes) else pcm.encode(audio), **row})["sections"]["items"]


def assert_covers(items, duration_s):
    assert items[0]["start_s"] == 0
    assert items[-1]["end_s"] == pytest.approx(duration_s)
    assert all(a["end_s"] == b["start_s"] for a, b in pairwise(items))
    assert len(items) == 1 or all(item["end_s"] - item["start_s"] >= 8 for item in items)
    assert {item["label"] for item in items} <= _LABELS


def part(kind: str, seconds: float) -> np.ndarray:
    """Three kinds of music that differ in harmony, timbre and level."""
    notes = {"a": (220, 262, 330), "b": (196, 247, 294, 392), "c": (175, 208, 311)}[kind]
    chord = mix(*(tone(hz, seconds, dbfs={"a": -24, "b": -14, "c": -30}[kind]) for hz in notes))
    return mix(chord, noise(seconds, dbfs=-35, seed=1)) if kind == "b" else chord


def song(form: str, seconds: float = 12) -> np.ndarray:
    return np.concatenate([part(kind, seconds) for kind in form], axis=1)


def test_boundaries_stand_where_the_music_changes():
    items = measure(song("abacb"))
    assert [item["start_s"] for item in items] == pytest.approx([0, 12, 24, 36, 48], abs=1.0)


def test_the_loud_part_that_returns_is_the_chorus():
    sung = {"vocals": {"has_vocals": True}}
    labels = [item["label"] for item in measure(song("ababcb"), **sung)]
    assert labels == ["verse", "chorus", "verse", "chorus", "bridge", "chorus"]


def test_nobody_sings_in_an_instrumental():
    labels = {item["label"] for item in measure(song("abab"), vocals={"has_vocals": False})}
    assert labels <= {"intro", "inst", "break", "outro"}


def test_boundaries_move_to_downbeats():
    downbeats_s = (np.arange(0.4, 60, 2.0)).tolist()
    rhythm = {"beats_s": np.arange(0.4, 60, 0.5).tolist(), "downbeats_s": downbeats_s}
    items = measure(song("abacb"), rhythm=rhythm)
    assert len(items) > 2
    assert {item["start_s"] for item in items[1:]} <= set(downbeats_s)


@pytest.mark.parametrize("seconds", [0.02, 1, 8, 60])
@pytest.mark.parametrize("make", [silence, noise], ids=["silence", "noise"])
def test_what_never_changes_is_one_part(make, seconds):
    items = measure(make(seconds))
    assert len(items) == 1
    assert_covers(items, seconds)


def test_no_audio_has_no_parts():
    assert measure(silence(0)) == []


def test_ten_minutes():
    audio = np.tile(pcm.stereo(pcm.encode(song("abac", 15))), (1, 10))
    items = measure(audio)
    assert_covers(items, 600)
    assert 25 <= len(items) <= 41


def test_a_real_song(audio):
    sound = load(audio("demo-songs", "audio_ace_step_1_5_split_4b-1.mp3"))
    items = measure(sound)
    assert_covers(items, pcm.duration_s(sound))
    assert 4 <= len(items) <= 12
    assert [item["label"] for item in items].count("chorus") >= 2
    assert items == measure(sound)


def test_singing_is_looked_for_on_the_vocal_stem(audio):
    speech = pcm.stereo(load(audio("speech-clips", "en/hello_world.wav")))
    stem = silence(48)
    stem[:, 12 * pcm.RATE_HZ : 36 * pcm.RATE_HZ] = np.resize(speech, (2, 24 * pcm.RATE_HZ))
    items = measure(song("abca"), vocals={"has_vocals": True}, vocal_stem=pcm.encode(stem))
    assert [item["label"] for item in items] == ["intro", "verse", "verse", "outro"]


def test_vocals_found_nowhere_win_over_a_noisy_stem():
    items = measure(clicks(120, 20), vocals={"has_vocals": False}, vocal_stem=pcm.encode(noise(20)))
    assert {item["label"] for item in items} <= {"intro", "inst", "break", "outro"}


def test_a_quiet_unsung_part_is_a_break():
    parts = [Part(i * 10, i * 10 + 10, i % 2, level, 0.0) for i, level in enumerate([-20, -20, -30, -20, -20])]
    assert label_parts(parts) == ["inst", "inst", "break", "inst", "inst"]


_PARTS = st.lists(
    st.builds(
        Part,
        st.just(0.0),
        st.floats(8, 60),
        st.integers(0, 3),
        st.floats(-60, 0),
        st.one_of(st.none(), st.floats(0, 1)),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(_PARTS)
def test_every_part_gets_one_label_and_intros_and_outros_stand_at_the_ends(parts):
    labels = label_parts(parts)
    assert len(labels) == len(parts)
    assert set(labels) <= _LABELS
    assert "intro" not in labels[1:]
    assert "outro" not in labels[:-1]
