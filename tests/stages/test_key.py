"""Keys of synthesised progressions and of real songs transposed by known intervals."""

import numpy as np
import pytest
import soxr

from stages import pcm
from stages.key import Key
from tests.support.audio import silence
from tests.support.songs import load

_TONICS = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
_PROGRESSIONS = {
    "major": ((0, 4, 7), (5, 9, 12), (7, 11, 14), (0, 4, 7)),
    "minor": ((0, 3, 7), (5, 8, 12), (7, 11, 14), (0, 3, 7)),
}


@pytest.fixture(scope="module")
def key() -> Key:
    stage = Key()
    stage.setup({})
    return stage


def measure(stage, audio):
    return stage.process({"pcm": audio if isinstance(audio, bytes) else pcm.encode(audio)})["key"]


def cadence(tonic: int, mode: str) -> np.ndarray:
    """I-IV-V-I in the octave above middle C, with six harmonics a note."""
    times_s = np.arange(2 * pcm.RATE_HZ) / pcm.RATE_HZ
    chords = []
    for chord in _PROGRESSIONS[mode]:
        pitches = [261.63 * 2 ** ((tonic + note) / 12) for note in (*chord, chord[0] - 12)]
        harmonics = [np.sin(2 * np.pi * hz * n * times_s) / n**1.5 for hz in pitches for n in range(1, 7)]
        chords.append(0.08 * np.sum(harmonics, axis=0) * np.exp(-times_s))
    return np.tile(np.concatenate(chords), (2, 1)).astype(np.float32)


@pytest.mark.parametrize("mode", ["major", "minor"])
@pytest.mark.parametrize("tonic", [0, 1, 4, 6, 10])
def test_cadences(key, tonic, mode):
    row = measure(key, cadence(tonic, mode))
    assert (row["tonic"], row["mode"]) == (_TONICS[tonic], mode)
    assert 0.5 < row["strength"] <= 1


@pytest.mark.parametrize("name", ["happy_electronic_1.opus", "energetic_electronic_2.opus"])
def test_transposing_a_real_song_moves_its_tonic(key, audio, name):
    song = pcm.stereo(load(audio("demo-music", name), 20))
    original = measure(key, song)
    for semitones in (-3, 2, 5):
        faster = soxr.resample(song.T, pcm.RATE_HZ, pcm.RATE_HZ / 2 ** (semitones / 12)).T
        moved = measure(key, faster)
        assert moved["tonic"] == _TONICS[(_TONICS.index(original["tonic"]) + semitones) % 12]
        assert moved["mode"] == original["mode"]


@pytest.mark.parametrize("seconds", [0, 1, 8])
def test_silence_has_no_key(key, seconds):
    row = measure(key, silence(seconds))
    assert row["tonic"] is None
    assert row["mode"] is None
    assert row["strength"] == 0


def test_one_second_is_enough_to_run(key):
    assert measure(key, cadence(0, "major")[:, : pcm.RATE_HZ])["tonic"] in _TONICS


@pytest.mark.parametrize("mode", ["major", "minor"])
@pytest.mark.parametrize("tonic", range(12))
def test_both_methods_hear_a_cadence_alike(key, tonic, mode):
    row = measure(key, cadence(tonic, mode))
    assert (row["second_tonic"], row["second_mode"]) == (_TONICS[tonic], mode)


def test_silence_has_no_key_by_either_method(key):
    row = measure(key, silence(3.0))
    assert row["second_tonic"] is row["second_mode"] is None
