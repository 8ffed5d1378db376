"""Spectra agree with librosa 0.11, whose figures are in tests/golden/spectrum.npz."""

import numpy as np
import pytest

from stages.signal import spectrum
from tests.support.places import GOLDEN

RATE_HZ = 22_050
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "spectrum.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def audio(golden: dict[str, np.ndarray]) -> np.ndarray:
    return golden["pcm"] / np.float32(32_768)


@pytest.fixture(scope="module")
def magnitudes(audio: np.ndarray) -> np.ndarray:
    return spectrum.magnitudes(audio, 2048, 256)


class TestAgreesWithLibrosa:
    def test_magnitudes(self, golden: dict[str, np.ndarray], magnitudes: np.ndarray) -> None:
        np.testing.assert_allclose(magnitudes[:, ::8], golden["magnitudes"], **CLOSE)

    def test_windows_shorter_than_their_frames(self, golden: dict[str, np.ndarray], audio: np.ndarray) -> None:
        made = spectrum.magnitudes(audio, 512, 160, window=400, centred=False)
        np.testing.assert_allclose(made[:, ::20], golden["short_windows"], **CLOSE)

    def test_mel_filters(self, golden: dict[str, np.ndarray]) -> None:
        made = spectrum.mel_filters(RATE_HZ, 2048, 64, 0.0, RATE_HZ / 2)
        np.testing.assert_allclose(made[::9], golden["mel_filters"], **CLOSE)

    def test_htk_filters_of_one_height(self, golden: dict[str, np.ndarray]) -> None:
        made = spectrum.mel_filters(16_000, 512, 64, 125, 7500, htk=True, area=False)
        np.testing.assert_allclose(made[::9], golden["htk_filters"], **CLOSE)

    def test_mel_bands_in_decibels(self, golden: dict[str, np.ndarray], magnitudes: np.ndarray) -> None:
        made = spectrum.decibels(spectrum.mel_bands(magnitudes**2, RATE_HZ, 128))
        np.testing.assert_allclose(made[::16, ::8], golden["decibels"], rtol=1e-5, atol=1e-4)

    def test_chroma(self, golden: dict[str, np.ndarray], magnitudes: np.ndarray) -> None:
        made = spectrum.unit_columns(spectrum.chroma(magnitudes**2, RATE_HZ))
        np.testing.assert_allclose(made[:, ::8], golden["chroma"], **CLOSE)

    def test_tuning_and_the_chroma_that_follows_it(self, golden: dict[str, np.ndarray], magnitudes: np.ndarray) -> None:
        tuning = spectrum.tuning(magnitudes, RATE_HZ)
        assert tuning == pytest.approx(float(golden["tuning"]))
        made = spectrum.chroma(magnitudes, RATE_HZ, tuning=tuning)
        np.testing.assert_allclose(made[:, ::8], golden["tuned_chroma"], **CLOSE)


class TestTuning:
    def test_of_silence_is_none(self) -> None:
        assert spectrum.tuning(np.zeros((1025, 4), np.float32), RATE_HZ) == 0.0

    @pytest.mark.parametrize("semitones", [-0.4, -0.15, 0.0, 0.2, 0.45])
    def test_of_a_chord_is_how_far_it_is_off(self, semitones: float) -> None:
        times_s = np.arange(2 * RATE_HZ) / RATE_HZ
        chord = sum(np.sin(2 * np.pi * 440 * 2 ** ((step + semitones) / 12) * times_s) for step in (0, 4, 7, 12))
        magnitudes = spectrum.magnitudes(chord.astype(np.float32), 8192, 2048)
        assert spectrum.tuning(magnitudes, RATE_HZ) == pytest.approx(semitones, abs=0.03)


def test_long_audio_is_transformed_as_short_audio_is(audio: np.ndarray) -> None:
    """In blocks, which leave no seam."""
    long = np.resize(audio, 64 * 5000)
    made = spectrum.magnitudes(long, 512, 64)
    frame = 4099  # in the third block
    alone = spectrum.magnitudes(long[frame * 64 - 256 : frame * 64 + 256], 512, 64, centred=False)
    np.testing.assert_array_equal(made[:, frame], alone[:, 0])
