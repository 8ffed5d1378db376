"""MERT and mHuBERT, on small random checkpoints in the files that their repositories have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertModel, Wav2Vec2FeatureExtractor

from schemas import ssl_codec
from stages import pcm
from stages.base import Weights
from stages.nets.hubert import HubertStates
from stages.ssl_hubert import SslHubert
from tests.support.random_checkpoints import MERT, MHUBERT, hubert
from tests.support.tracks import load, measure


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, HubertModel]]:
    root = tmp_path_factory.mktemp("weights")
    kinds = {"mert": MERT, "mhubert": MHUBERT}
    return root, {name: hubert(root / name, told, seed) for seed, (name, told) in enumerate(kinds.items())}


@pytest.fixture(scope="module")
def stage(random: tuple[Path, dict[str, HubertModel]]) -> SslHubert:
    made = SslHubert(SslHubert.Params(mert="mert", mhubert="mhubert"))
    made.setup({name: Weights(name, random[0] / name, "0" * 64) for name in made.models})
    return made


@pytest.fixture(scope="module")
def song(audio: Callable) -> np.ndarray:
    """12.4 s: two chunks of MERT's and a part."""
    return load(audio("demo-music", "calm_acoustic_1.opus"), 12.4)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize(("name", "rate_hz", "per_second"), [("mert", 24_000, 75), ("mhubert", 16_000, 50)])
def test_a_chunk_of_a_random_checkpoint_has_transformers_own_states(random, song, name, rate_hz, per_second):
    heard = pcm.mono(pcm.encode(song), rate_hz)[: 4 * rate_hz]
    states = HubertStates.load(random[0] / name, rate_hz, 5.0)(heard)
    assert states.shape == (4 * per_second, 32)
    reader = Wav2Vec2FeatureExtractor(sampling_rate=rate_hz, do_normalize=True)
    values = reader(heard, sampling_rate=rate_hz, return_tensors="pt").input_values
    with torch.no_grad():
        expected = random[1][name](torch.nn.functional.pad(values, (0, 80))).last_hidden_state[0].numpy()
    np.testing.assert_allclose(states, expected, atol=1e-3)


def test_chunks_of_a_random_checkpoint_are_as_long_as_their_audio(random, song):
    mert = HubertStates.load(random[0] / "mert", 24_000, 5.0)
    heard = pcm.mono(pcm.encode(song), 24_000)
    states = mert(heard)
    assert len(states) == 930 == round(12.4 * 75)
    whole = HubertStates.load(random[0] / "mert", 24_000, 60.0)(heard)
    assert cosines(states, whole).mean() > 0.9  # a chunk hears less, at the same times
    shifted = cosines(states[:-8], whole[8:]).mean()
    assert shifted < cosines(states, whole).mean() - 0.05
    alone = HubertStates.load(random[0] / "mert", 24_000, 5.0)
    alone._batch = 1
    np.testing.assert_allclose(alone(heard), states, atol=1e-4)


def test_loudness_and_offset_change_no_state_of_a_random_checkpoint(random, song):
    mert = HubertStates.load(random[0] / "mert", 24_000, 5.0)
    heard = pcm.mono(pcm.encode(song), 24_000)
    assert cosines(mert(0.3 * heard + 0.1), mert(heard)).min() > 0.999


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.1, 5.0])
def test_short_recordings_through_a_random_checkpoint(stage, song, seconds):
    cut = pcm.encode(song[:, : round(seconds * 44_100)])
    made = measure(stage, pcm=cut)["ssl"]
    assert made["mert"]["frames"] == made["m-hubert"]["frames"] == round(seconds * 44_100) // 4096
    silent = measure(stage, pcm=bytes(len(cut)))["ssl"]["mert"]
    assert np.isfinite(ssl_codec.decode(silent["scales"], silent["data"], 32)).all()


def test_the_stage_stores_both_random_encoders_at_the_latent_rate(stage, song):
    made = measure(stage, pcm=pcm.encode(song))["ssl"]
    assert made["model"] == "mert@00000000+mhubert@00000000"
    for field in ("mert", "m-hubert"):
        assert (made[field]["frames"], made[field]["dim"]) == (133, 32)
        assert made[field]["rate_hz"] == pytest.approx(44_100 / 4096)
    mert = stage._encoders["mert"]
    exact = ssl_codec.pool(mert(pcm.mono(pcm.encode(song), 24_000)), 75.0, 133, 44_100 / 4096)
    restored = ssl_codec.decode(made["mert"]["scales"], made["mert"]["data"], 32)
    assert cosines(restored, exact).min() > 0.999


def test_native_rates_of_random_encoders(random, song):
    native = SslHubert(SslHubert.Params(mert="mert", mhubert="mhubert", rate="native"))
    native.setup({name: Weights(name, random[0] / name, "0" * 64) for name in native.models})
    made = measure(native, pcm=pcm.encode(song))["ssl"]
    assert [(made[field]["frames"], made[field]["rate_hz"]) for field in ("mert", "m-hubert")] == [(930, 75), (620, 50)]


def test_a_random_checkpoint_that_is_no_hubert_or_lacks_a_weight_is_refused(tmp_path):
    hubert(tmp_path / "cqt", MERT | {"feature_extractor_cqt": True}, 0)
    with pytest.raises(ValueError, match="feature_extractor_cqt is True"):
        HubertStates.load(tmp_path / "cqt", 24_000, 5.0)
    hubert(tmp_path / "lacking", MHUBERT, 0)
    weights = torch.load(tmp_path / "lacking" / "pytorch_model.bin", weights_only=True)
    del weights["encoder.layers.1.attention.q_proj.weight"]
    torch.save(weights, tmp_path / "lacking" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="1 weights are missing, encoder"):
        HubertStates.load(tmp_path / "lacking", 16_000, 30.0)
