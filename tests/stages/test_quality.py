"""Signal quality against signals whose figures are known beforehand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.base import Track
from stages.decode import NATIVE, Decode
from stages.quality import FLOOR_DB, FLOOR_LUFS, NotDecoded, Quality, QualityParams
from tests.support.audio import mix, noise, silence, tone, write


def measure(audio: np.ndarray, rate_hz: int = 44_100, **params: float) -> dict[str, Any]:
    """The `quality` column of a signal [channels, frames]."""
    native = {"rate_hz": rate_hz, "channels": audio.shape[0], "samples": audio.T.astype(np.float32).tobytes()}
    return _measure_native(native, **params)


def measure_file(path: Path) -> dict[str, Any]:
    return _measure_native(Decode().process(Track(pa.table({"uri": [str(path)]}), 0))["native"])


def _measure_native(native: dict[str, Any] | None, **params: float) -> dict[str, Any]:
    row = pa.table(
        {
            "native": pa.array([native], NATIVE),
            "audio": pa.array([{"duration_s": 4000.0}], Quality.reads["audio"]),
        }
    )
    column = Quality(QualityParams(**params)).process(Track(row, 0))["quality"]
    assert pa.scalar(column, Quality.type).as_py() == column
    return column


@pytest.mark.parametrize("rate_hz", [22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("dbfs", [-40.0, -23.0, 0.0])
def test_loudness_of_a_tone_is_its_level(rate_hz: int, dbfs: float) -> None:
    """BS.1770: 997 Hz at full scale in one channel is -3.01 LKFS, in both 0."""
    assert measure(tone(997, 3.0, rate_hz, dbfs=dbfs), rate_hz)["loudness_lufs"] == pytest.approx(dbfs, abs=0.2)
    mono = measure(tone(997, 3.0, rate_hz, channels=1, dbfs=dbfs), rate_hz)
    assert mono["loudness_lufs"] == pytest.approx(dbfs - 3.01, abs=0.2)


def test_loudness_leaves_silence_and_the_bass_channel_out() -> None:
    loud = tone(997, 5.0, dbfs=-20.0)
    with_pause = np.concatenate([loud, silence(5.0)], axis=1)
    assert measure(with_pause)["loudness_lufs"] == pytest.approx(-20.0, abs=0.3)
    only_bass = np.zeros((6, 44_100), dtype=np.float32)
    only_bass[3] = tone(60, 1.0, channels=1)[0]
    assert measure(only_bass)["loudness_lufs"] == FLOOR_LUFS


def test_true_peak_lies_between_the_samples() -> None:
    """A quarter of the rate, 45 degrees off: every sample reads 3 dB less than the wave."""
    frames = np.arange(44_100)
    wave = 0.5 * np.sin(2 * np.pi * frames / 4 + np.pi / 4) * np.hanning(frames.size)
    audio = np.tile(wave, (2, 1))

    assert 20 * np.log10(np.abs(audio).max()) == pytest.approx(-9.03, abs=0.01)
    assert measure(audio)["true_peak_dbtp"] == pytest.approx(-6.02, abs=0.05)


@pytest.mark.parametrize("rate_hz", [8_000, 48_000, 96_000, 192_000])
def test_true_peak_of_a_plain_tone_is_its_level(rate_hz: int) -> None:
    faded = tone(997, 1.0, rate_hz, dbfs=-6.0) * np.hanning(rate_hz)

    assert measure(faded, rate_hz)["true_peak_dbtp"] == pytest.approx(-6.0, abs=0.05)


def test_clipping_is_seen_at_full_scale_and_after_turning_down() -> None:
    clean = noise(2.0, dbfs=-14.0)
    cut_off = np.clip(clean * 3, -1.0, 1.0)
    runs = np.abs(cut_off) == 1.0

    assert measure(clean * 0.5)["clipped_ratio"] == 0.0
    assert 0 < measure(cut_off)["clipped_ratio"] < runs.mean()
    assert measure(cut_off * 0.3)["clipped_ratio"] == pytest.approx(measure(cut_off)["clipped_ratio"], rel=0.01)


def test_clipped_samples_are_counted() -> None:
    wave = tone(100, 1.0, dbfs=-12.0)
    wave[0, 1_000:1_010] = 1.0
    wave[1, 5_000:5_002] = -1.0  # two are a peak, no clipping

    assert measure(wave)["clipped_ratio"] == pytest.approx(10 / wave.size)


def test_silence_and_noise_floor() -> None:
    song = np.concatenate([tone(440, 3.0), noise(1.0, dbfs=-70.0)], axis=1)

    column = measure(song)

    assert column["silent_ratio"] == pytest.approx(0.25, abs=0.01)
    assert measure(song, silence_dbfs=-80.0)["silent_ratio"] == 0.0
    assert column["noise_floor_db"] == pytest.approx(-70.0, abs=0.5)


def test_digital_silence_does_not_count_as_a_noise_floor() -> None:
    song = np.concatenate([silence(1.0), noise(3.0, dbfs=-50.0)], axis=1)

    assert measure(song)["noise_floor_db"] == pytest.approx(-50.0, abs=0.5)


@pytest.mark.parametrize(
    ("audio", "correlation"),
    [
        (noise(1.0, same=True), 1.0),
        (noise(1.0, channels=1), 1.0),
        (noise(1.0, same=True) * np.array([[1.0], [-0.5]]), -1.0),
        (noise(1.0), 0.0),
        (noise(1.0) * np.array([[1.0], [0.0]]), 0.0),
        (mix(noise(1.0, same=True), noise(1.0, seed=1)), 0.5),
    ],
    ids=["mono", "one channel", "antiphase", "unrelated", "one side", "half"],
)
def test_stereo_correlation(audio: np.ndarray, correlation: float) -> None:
    assert measure(audio)["stereo_correlation"] == pytest.approx(correlation, abs=0.02)


def test_digital_silence_has_sensible_figures() -> None:
    column = measure(silence(1.0))

    del column["model"]
    assert column == {
        "loudness_lufs": FLOOR_LUFS,
        "true_peak_dbtp": FLOOR_DB,
        "clipped_ratio": 0.0,
        "silent_ratio": 1.0,
        "bandwidth_hz": 0.0,
        "stereo_correlation": 1.0,
        "noise_floor_db": FLOOR_DB,
    }


def test_too_short_for_loudness() -> None:
    assert measure(tone(997, 0.39))["loudness_lufs"] is None


@pytest.fixture(scope="module")
def song(audio: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Ten seconds of a real song, with a breath of noise: it has energy up to the Nyquist frequency."""
    row = pa.table({"uri": [str(audio("demo-songs", "audio_ace_step_1_t2a_song-1.mp3"))]})
    samples = np.frombuffer(Decode().process(Track(row, 0))["native"]["samples"], dtype=np.float32).reshape(-1, 2).T
    return mix(samples[:, 441_000:882_000], noise(10.0, dbfs=-60.0))


# Where the encoder's low-pass ends. 320 kbit/s: 20 kHz; the float decode is what the stage sees of an MP3.
LOW_PASSED = [(64, 11_000), (128, 16_900), (320, 20_200)]


@pytest.mark.parametrize(("kbps", "edge_hz"), LOW_PASSED)
def test_bandwidth_shows_the_bit_rate_and_survives_resaving(
    tmp_path: Path, song: np.ndarray, kbps: int, edge_hz: int
) -> None:
    lossy = write(tmp_path / "song.mp3", song, kbps=kbps)
    decoded = Decode().process(Track(pa.table({"uri": [str(lossy)]}), 0))["native"]["samples"]
    resaved = write(tmp_path / "song.flac", np.frombuffer(decoded, dtype=np.float32).reshape(-1, 2).T.clip(-1, 1))

    assert measure_file(lossy)["bandwidth_hz"] == pytest.approx(edge_hz, abs=600)
    assert measure_file(resaved)["bandwidth_hz"] == pytest.approx(edge_hz, abs=600)


def test_bandwidth_of_a_clipped_transcode_is_that_of_the_low_pass(tmp_path: Path, song: np.ndarray) -> None:
    """Overs cut off by the re-saving spread over the whole spectrum and must not pass for music."""
    lossy = write(tmp_path / "song.mp3", np.clip(song * 2.5, -1, 1), kbps=64)
    decoded = Decode().process(Track(pa.table({"uri": [str(lossy)]}), 0))["native"]["samples"]
    clipped = np.frombuffer(decoded, dtype=np.float32).reshape(-1, 2).T.clip(-1, 1)

    column = measure_file(write(tmp_path / "song.flac", clipped))

    assert column["clipped_ratio"] > 1e-4
    assert column["bandwidth_hz"] == pytest.approx(11_000, abs=600)


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 96_000])
def test_full_band_reaches_nyquist(tmp_path: Path, rate_hz: int) -> None:
    path = write(tmp_path / "noise.flac", noise(2.0, rate_hz, dbfs=-50.0), rate_hz)

    assert measure_file(path)["bandwidth_hz"] == pytest.approx(rate_hz / 2, abs=100)


def test_dither_is_no_bandwidth(tmp_path: Path) -> None:
    dither = (np.random.default_rng(0).random((2, 2, 88_200)) - 0.5).sum(axis=0) * 2**-15
    low_passed = mix(tone(4_000, 2.0) * np.hanning(88_200), dither).astype(np.float32)

    assert measure_file(write(tmp_path / "tone.flac", low_passed))["bandwidth_hz"] < 5_000


def test_over_the_decoders_limit() -> None:
    with pytest.raises(NotDecoded, match="4000 s"):
        _measure_native(None)


@settings(max_examples=60, deadline=None)
@given(
    audio=arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.integers(1, 3_000)),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
        fill=st.sampled_from([0.0, 0.25, -1.0, np.nan]),
    ),
    rate_hz=st.sampled_from([4_000, 44_100, 192_000]),
)
def test_figures_are_finite_whatever_the_samples(audio: np.ndarray, rate_hz: int) -> None:
    column = measure(audio, rate_hz)

    assert np.isfinite([value for name, value in column.items() if name != "model" and value is not None]).all()
    assert 0 <= column["clipped_ratio"] <= 1
    assert 0 <= column["silent_ratio"] <= 1
    assert 0 <= column["bandwidth_hz"] <= rate_hz / 2
    assert -1 <= column["stereo_correlation"] <= 1
