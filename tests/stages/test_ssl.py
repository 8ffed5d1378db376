from collections.abc import Callable
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.convert import whisper_encoder
from schemas import ssl_codec
from stages import pcm
from stages.nets.whisper_encoder import WhisperStates
from stages.ssl import Ssl
from tests.support.tracks import load, measure, ready

LATENT_HZ = 44_100 / 512 / 8
SONG = "audio_ace_step_1_5_split_4b-1.mp3"


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def decoded(states: dict) -> np.ndarray:
    return ssl_codec.decode(states["scales"], states["data"], states["dim"])


@pytest.fixture(scope="module")
def ssl(weights: Callable) -> Ssl:
    return ready(Ssl, weights)


@pytest.fixture(scope="module")
def song(audio: Callable) -> bytes:
    """33.3 s, more than one window."""
    return pcm.encode(load(audio("demo-songs", SONG), 33.3))


@pytest.fixture(scope="module")
def states(ssl: Ssl, song: bytes) -> np.ndarray:
    return ssl._encoder(pcm.mono(song, 16_000))


# The codec.


@given(seed=st.integers(0, 2**32 - 1), dim=st.sampled_from([2, 16, 512]), spread=st.floats(0, 3))
def test_loss_on_the_stored_mean_is_the_mean_cosine_loss(seed: int, dim: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    native = rng.standard_normal(dim) + spread * rng.standard_normal((140, dim))
    frames = 30
    pooled = ssl_codec.pool(native, 50.0, frames, LATENT_HZ)
    projections = rng.standard_normal((frames, dim))
    owner = np.floor((np.arange(140) + 0.5) / 50 * LATENT_HZ).astype(int)
    held = projections / np.linalg.norm(projections, axis=1, keepdims=True)
    for frame in range(frames):
        expected = np.mean(1 - cosines(projections[frame], native[owner == frame]))
        assert 1 - held[frame] @ pooled[frame] == pytest.approx(expected, abs=1e-5)


@given(
    seed=st.integers(0, 2**32 - 1),
    frames=st.integers(0, 20),
    dim=st.sampled_from([1, 7, 512]),
    length=st.floats(1e-3, 1.0),
)
def test_decode_undoes_encode(seed: int, frames: int, dim: int, length: float) -> None:
    vectors = length * ssl_codec.normalize(np.random.default_rng(seed).standard_normal((frames, dim)))
    scales, data = ssl_codec.encode(vectors)
    assert (len(scales), len(data)) == (2 * frames, frames * dim)
    restored = ssl_codec.decode(scales, data, dim)
    # Rounding moves a component by at most half a step of the largest one's 127; float16 keeps 11 bits of the length.
    step = np.abs(vectors).max(axis=1, initial=0.0) / 127
    assert (np.linalg.norm(restored - vectors, axis=1) <= np.sqrt(dim) * step + length * 2**-10).all()
    assert np.linalg.norm(restored, axis=1) == pytest.approx(np.linalg.norm(vectors, axis=1), rel=2**-10)


def test_zero_vectors_stay_zero() -> None:
    assert not ssl_codec.decode(*ssl_codec.encode(np.zeros((3, 8))), 8).any()


def test_pool_wants_a_state_under_every_frame() -> None:
    with pytest.raises(ValueError, match="leave some of 12 frames empty"):
        ssl_codec.pool(np.ones((50, 4)), 50.0, 12, LATENT_HZ)


# The encoder.


def test_conversion_is_reproducible_and_agrees_with_ctranslate2(weights: Callable, song: bytes, tmp_path: Path) -> None:
    source = weights("whisper-base")["whisper-base"].path
    whisper_encoder.convert(source, tmp_path)
    stored = weights("whisper-base-encoder")["whisper-base-encoder"].path
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / name).read_bytes() == (stored / name).read_bytes()

    encoder = WhisperStates.load(tmp_path)
    window = pcm.mono(song, 16_000)[10 * 16_000 :][: 20 * 16_000]
    original = ctranslate2.models.Whisper(str(source), device="cpu", compute_type="float32", intra_threads=1)
    mel = encoder._mel(window, sampling_rate=16_000, return_tensors="np").input_features
    expected = np.array(original.encode(ctranslate2.StorageView.from_array(mel), to_cpu=True))[0, : 20 * 50]
    states = encoder(window)
    assert states.shape == expected.shape == (1000, 512)
    assert cosines(states, expected).min() > 0.99999
    assert np.abs(states - expected).max() < 0.01


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\x06\x00\x00\x00\x05\x00Spec\x00\x01\x00\x00\x00")
    with pytest.raises(ValueError, match="expected a version 6 WhisperSpec"):
        whisper_encoder.convert(tmp_path, tmp_path)


def test_states_have_the_true_length(ssl: Ssl, states: np.ndarray) -> None:
    assert states.shape == (1665, 512)  # 33.3 s at 50 Hz
    assert ssl._encoder(np.zeros(0, np.float32)).shape == (0, 512)


# The stage.


def test_latent_rate(ssl: Ssl, song: bytes, states: np.ndarray) -> None:
    column = measure(ssl, pcm=song)["ssl"]
    stored = column["whisper_base"]
    assert column["model"].startswith("whisper-base-encoder@")
    assert stored["frames"] == int(33.3 * LATENT_HZ) == 358
    assert (stored["dim"], stored["rate_hz"]) == (512, pytest.approx(LATENT_HZ))
    restored = decoded(stored)
    exact = ssl_codec.pool(states, 50.0, 358, LATENT_HZ)
    assert np.linalg.norm(restored - exact, axis=1).max() < 0.05
    assert cosines(restored, exact).min() > 0.999
    lengths = np.linalg.norm(restored, axis=1)
    assert lengths.max() <= 1.001
    assert lengths.std() > 0.01  # how far the states under a frame agree was not thrown away


def test_exact_multiples_of_a_latent_frame_lose_none(ssl: Ssl, song: bytes) -> None:
    for frames in (0, 1, 7):
        cut = song[: frames * 4096 * 4]
        assert measure(ssl, pcm=cut)["ssl"]["whisper_base"]["frames"] == frames


def test_native_rate(weights: Callable, song: bytes) -> None:
    stage = ready(Ssl, weights, rate="native")
    cut = song[: 12 * 44_100 * 4]
    stored = measure(stage, pcm=cut)["ssl"]["whisper_base"]
    assert (stored["frames"], stored["rate_hz"]) == (600, 50.0)
    assert cosines(decoded(stored), stage._encoder(pcm.mono(cut, 16_000))).min() > 0.998
    assert measure(stage, pcm=cut)["ssl"]["whisper_base"] == stored
