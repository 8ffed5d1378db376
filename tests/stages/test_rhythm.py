"""Tempo, beats, bars: both engines and the fit they share."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import columns
from stages import pcm
from stages.base import Track, Weights
from stages.rhythm import Rhythm
from stages.rhythm_beat_this import MODEL, RhythmBeatThis, log_mel, peaks_s
from stages.signal.meter import find_meter, meter_from_downbeats
from stages.signal.tempo import choose_octave, fit_bpm
from tests.support.audio import clicks, noise, silence
from tests.support.random_checkpoints import beat_this
from tests.support.songs import load

_WITHIN = 0.005


def run(stage, audio):
    batch = pa.table({"pcm": pa.array([audio if isinstance(audio, bytes) else pcm.encode(audio)], pcm.PCM)})
    (row,) = pa.array(stage.run(batch)["rhythm"], columns.RHYTHM).to_pylist()
    assert Track(batch, 0)["pcm"] is not None
    return row


def octave_free(bpm: float, expected: float) -> float:
    """The relative error, not counting octaves."""
    octaves = np.log2(bpm / expected)
    return abs(2 ** (octaves - round(octaves)) - 1)


@pytest.fixture(scope="module")
def rhythm() -> Rhythm:
    stage = Rhythm()
    stage.setup({})
    return stage


@pytest.mark.parametrize("bpm", [60, 90, 97.3, 120, 128, 174])
def test_click_tracks_come_out_within_half_a_percent(rhythm, bpm):
    row = run(rhythm, clicks(bpm, 20))
    assert octave_free(row["bpm"], bpm) < _WITHIN
    assert row["confidence"] > 0.5
    intervals = np.diff(row["beats_s"])
    assert np.allclose(intervals, 60 / row["bpm"], atol=0.03)


@pytest.mark.parametrize(("bpm", "per_bar"), [(120, 4), (120, 3), (90, 4)])
def test_accents_give_meter_and_downbeats(rhythm, bpm, per_bar):
    row = run(rhythm, clicks(bpm, 24, accent_every=per_bar))
    assert row["time_signature"] == per_bar
    bar_s = per_bar * 60 / bpm
    distances = np.array(row["downbeats_s"]) / bar_s % 1
    assert np.all(np.minimum(distances, 1 - distances) * bar_s < 0.06)  # the accents stand at whole bars
    assert set(row["downbeats_s"]) <= set(row["beats_s"])


@pytest.mark.parametrize("audio", [silence(0), silence(1), silence(8), noise(1), noise(0.1)], ids=repr)
def test_without_beats_there_is_no_tempo(rhythm, audio):
    row = run(rhythm, audio)
    assert row["bpm"] is None
    assert row["beats_s"] == row["downbeats_s"] == []
    assert row["confidence"] == 0


def test_eight_seconds_are_enough(rhythm):
    assert octave_free(run(rhythm, clicks(120, 8))["bpm"], 120) < _WITHIN


@pytest.mark.parametrize(
    ("name", "bpm"),
    [
        ("happy_electronic_1.opus", 123.0),
        ("energetic_electronic_2.opus", 150.0),
        ("nostalgic_acoustic_s411.opus", 78.0),
    ],
)
def test_real_instrumentals(rhythm, audio, name, bpm):
    row = run(rhythm, load(audio("demo-music", name)))
    assert octave_free(row["bpm"], bpm) < _WITHIN
    assert row["time_signature"] == 4
    assert 0.3 < row["confidence"] <= 1


def test_stretching_a_song_scales_its_tempo(rhythm, audio):
    song = pcm.stereo(load(audio("demo-music", "energetic_electronic_2.opus")))
    slower = soxr.resample(song.T, 9, 10).T
    assert octave_free(run(rhythm, slower)["bpm"], 0.9 * run(rhythm, song)["bpm"]) < _WITHIN


def test_measuring_twice_gives_the_same(rhythm):
    assert run(rhythm, clicks(101, 12)) == run(rhythm, clicks(101, 12))


def test_essentia_missing_is_said_clearly(monkeypatch):
    monkeypatch.setitem(sys.modules, "essentia", None)
    with pytest.raises(RuntimeError, match=r"pip install 'songmill\[essentia\]'"):
        Rhythm().setup({})


@settings(deadline=None, max_examples=60)
@given(
    bpm=st.floats(50, 200),
    beats=st.integers(24, 200),
    seed=st.integers(0, 2**32 - 1),
    lost=st.floats(0, 0.15),
    added=st.floats(0, 0.1),
)
def test_fit_survives_jitter_missed_and_extra_beats(bpm, beats, seed, lost, added):
    random = np.random.default_rng(seed)
    period = 60 / bpm
    times_s = 1.0 + period * np.arange(beats)
    times_s = np.round(times_s[random.random(beats) >= lost] / 0.0116) * 0.0116  # the tracker's grid
    extra = times_s[:-1][random.random(len(times_s) - 1) < added] + period * 0.3
    assert octave_free(fit_bpm(np.sort(np.concatenate([times_s, extra]))), bpm) < _WITHIN


def test_fit_of_a_song_that_changes_its_tempo_is_the_longer_part():
    times_s = np.cumsum([60 / 100] * 40 + [60 / 140] * 120)
    assert fit_bpm(times_s) == pytest.approx(140, rel=_WITHIN)


def test_fit_survives_a_slip_by_half_a_beat():
    times_s = np.arange(160) * 0.4
    times_s[70:] += 0.2
    assert fit_bpm(times_s) == pytest.approx(150, rel=_WITHIN)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_beats_have_no_tempo(count):
    assert fit_bpm(np.arange(count) * 0.5) is None


@pytest.mark.parametrize(
    ("tracked_s", "bpm", "decision"),
    [(0.5, 120, "as_is"), (0.25, 240, "halved"), (1.2, 50, "doubled")],
)
def test_octave_follows_the_pulses(tracked_s, bpm, decision):
    strength = np.zeros(3000)  # 60 s at 50 Hz
    pulse_s = {"as_is": 0.5, "halved": 0.5, "doubled": 0.6}[decision]
    strength[np.round(np.arange(0, 59, pulse_s) * 50).astype(int)] = 1.0
    octave = choose_octave(np.arange(0, 58, tracked_s), bpm, strength, 50)
    assert octave.decision == decision
    assert 0.4 < octave.confidence <= 1
    assert np.median(np.diff(octave.beats_s)) == pytest.approx(pulse_s)


def test_meter_of_few_beats_is_four():
    assert find_meter(np.arange(6.0), np.array([1.0, 0, 0, 1, 0, 0])).time_signature == 4


def test_meter_from_downbeats_is_the_most_common_bar():
    beats_s = np.arange(25.0)
    assert meter_from_downbeats(beats_s, beats_s[[0, 3, 6, 10, 13]]) == 3
    assert meter_from_downbeats(beats_s, beats_s[:1]) is None


@pytest.fixture(scope="module")
def random_beat_this(tmp_path_factory) -> RhythmBeatThis:
    folder: Path = tmp_path_factory.mktemp("beat-this")
    beat_this(folder / "final0.ckpt", 0)
    stage = RhythmBeatThis()
    stage.setup({MODEL: Weights(MODEL, folder, "0" * 64)})
    return stage


@pytest.mark.parametrize("seconds", [0, 0.01, 3])
def test_beat_this_with_random_weights_runs_on_any_length(random_beat_this, seconds):
    row = run(random_beat_this, clicks(120, seconds))
    assert sorted(row["beats_s"]) == row["beats_s"]
    assert set(row["downbeats_s"]) <= set(row["beats_s"])
    assert row["model"] == "beat-this-final0@00000000"


@pytest.mark.parametrize("frames", [40, 2000])
def test_beat_this_with_random_weights_chunks_as_its_library_does(random_beat_this, frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", type(sys)("torchaudio"))  # imported there, not used for this
    from beat_this.inference import split_predict_aggregate

    network = random_beat_this._network
    mel = torch.from_numpy(np.random.default_rng(0).random((frames, 128), dtype=np.float32))
    with torch.inference_mode():
        theirs = split_predict_aggregate(mel, 1500, 6, "keep_first", network)
    beat, downbeat = random_beat_this.probabilities(mel)
    assert np.mean(np.abs(beat - torch.sigmoid(theirs["beat"]).numpy())) < 1e-3
    assert np.mean(np.abs(downbeat - torch.sigmoid(theirs["downbeat"]).numpy())) < 1e-3


def test_beat_this_log_mel_has_50_frames_a_second_and_places_a_tone():
    tone = np.sin(2 * np.pi * 1000 * np.arange(22_050) / 22_050).astype(np.float32)
    mel = log_mel(tone)
    assert mel.shape == (51, 128)
    assert abs(int(mel[25].argmax()) - 45) <= 8  # 1 kHz is the knee of the Slaney scale


def test_beat_this_peaks_are_maxima_above_one_half():
    probability = np.zeros(100, dtype=np.float32)
    probability[[10, 12, 40, 60, 61]] = [0.9, 0.6, 0.4, 0.7, 0.7]
    assert peaks_s(probability).tolist() == pytest.approx([0.2, 1.21])
