from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soxr

from pipeline.curation.duplicates import containment
from stages.base import Weights
from stages.fingerprint import SKETCH_SIZE, Fingerprint, fingerprint
from tests.support.audio import noise, silence, write
from tests.support.tracks import load, measure

RATE_HZ = 44_100
THRESHOLD = 0.4  # the default of find_duplicates


@pytest.fixture(scope="module")
def songs(weights: Callable[..., Mapping[str, Weights]]) -> dict[str, np.ndarray]:
    """Songs of one generator, most of them in one style and key."""
    folders = [entry.path for entry in weights("demo-music", "demo-songs").values()]
    files = sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".opus", ".mp3"))
    return {path.stem: load(path, 32.0) for path in files}


@pytest.fixture(scope="module")
def sketches(songs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: fingerprint(song.T, RATE_HZ) for name, song in songs.items()}


def reencoded(song: np.ndarray, path: Path, kbps: int, rate_hz: int = RATE_HZ) -> np.ndarray:
    song = soxr.resample(song.T, RATE_HZ, rate_hz).T
    return fingerprint(load(write(path, song, rate_hz, kbps=kbps)).T, RATE_HZ)


def cut(song: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    return song[:, round(start_s * RATE_HZ) : -round(end_s * RATE_HZ)]


@pytest.mark.parametrize("name", ["energetic_electronic_2", "audio_ace_step_1_t2a_song-1"])
class TestACopyIsRecognised:
    def test_as_mp3(self, songs, sketches, name, tmp_path):
        assert containment(sketches[name], reencoded(songs[name], tmp_path / "a.mp3", 64)) > THRESHOLD

    def test_as_opus_at_another_rate(self, songs, sketches, name, tmp_path):
        assert containment(sketches[name], reencoded(songs[name], tmp_path / "a.opus", 64, 48_000)) > THRESHOLD

    def test_louder_and_clipped(self, songs, sketches, name):
        louder = np.clip(2 * songs[name], -1, 1)
        assert containment(sketches[name], fingerprint(louder.T, RATE_HZ)) > THRESHOLD

    def test_cut_at_both_ends(self, songs, sketches, name):
        assert containment(sketches[name], fingerprint(cut(songs[name], 2.371, 1.917).T, RATE_HZ)) > THRESHOLD

    def test_with_everything_done_to_it(self, songs, sketches, name, tmp_path):
        worn = np.clip(2 * cut(songs[name], 3.111, 0.5), -1, 1)
        assert containment(sketches[name], reencoded(worn, tmp_path / "a.mp3", 64)) > THRESHOLD


def test_different_songs_of_one_generator_are_far_apart(sketches):
    alike = {(a, b): containment(sketches[a], sketches[b]) for a, b in combinations(sketches, 2)}
    assert len(alike) > 50
    assert max(alike.values()) < THRESHOLD - 0.1, max(alike, key=alike.get)


def loop(seed: int, bpm: float = 120.0, bars: int = 8) -> np.ndarray:
    """A bar of random drums and chords, repeated; every seed has the same tempo and the same drum sounds."""
    random, samples = np.random.default_rng(seed), np.random.default_rng(0)
    step = round(60 / bpm / 4 * RATE_HZ)
    times = np.arange(step * 2) / RATE_HZ
    drums = [
        np.sin(2 * np.pi * 60 * times) * np.exp(-30 * times),
        samples.standard_normal(times.size) * np.exp(-40 * times),
    ]
    bar = np.zeros(step * 18)
    for position in range(16):
        hz = 220 * 2 ** (random.choice([0, 2, 3, 5, 7, 8, 10, 12]) / 12)
        chord = sum(np.sin(2 * np.pi * hz * k * times) / k for k in (1, 2, 3, 4)) * np.exp(-6 * times)
        bar[position * step : (position + 2) * step] += 0.2 * chord + 0.2 * drums[random.integers(2)]
    return np.tile(bar[: step * 16], bars)[:, None].astype(np.float32)


def test_loops_of_one_tempo_with_the_same_drums_are_told_apart():
    first, second = (fingerprint(loop(seed), RATE_HZ) for seed in (1, 2))
    assert min(first.size, second.size) >= 64
    assert containment(first, second) < THRESHOLD


def test_gain_alone_changes_nothing(songs):
    song = songs["calm_acoustic_1"]
    np.testing.assert_array_equal(fingerprint(song.T, RATE_HZ), fingerprint(song.T / 8, RATE_HZ))


def test_the_sketch_is_bounded_sorted_and_distinct(sketches):
    for sketch in sketches.values():
        assert sketch.dtype == np.uint32
        assert sketch.size == SKETCH_SIZE
        assert (np.diff(sketch.astype(np.int64)) > 0).all()


@pytest.mark.parametrize("seconds", [0.0, 0.01, 5.0])
def test_silence_has_no_landmarks(seconds):
    assert fingerprint(silence(seconds).T, RATE_HZ).size == 0


def test_two_noises_are_different_songs():
    first, second = (fingerprint(noise(30.0, seed=seed).T, RATE_HZ) for seed in (1, 2))
    assert containment(first, second) < THRESHOLD / 2


def native(audio: np.ndarray) -> dict[str, object]:
    return {"rate_hz": RATE_HZ, "channels": audio.shape[0], "samples": audio.T.astype("<f4").tobytes()}


def test_the_stage_measures_the_native_samples(songs, sketches):
    stage = Fingerprint()
    column = measure(stage, native=native(songs["calm_acoustic_1"]))["fingerprint"]
    assert column["hashes"] == sketches["calm_acoustic_1"].tolist()
    assert column["model"] == stage.model


def test_audio_left_undecoded_has_no_fingerprint():
    assert measure(Fingerprint(), native=None)["fingerprint"] is None
