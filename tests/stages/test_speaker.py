from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.models.convert import resemblyzer as converter
from stages import pcm
from stages.nets.resemblyzer import DIM, SpeakerEncoder, _partial_starts
from stages.speaker import Speaker
from tests.support import audio as signals
from tests.support.tracks import load, measure, ready


@pytest.fixture(scope="module")
def speaker(weights: Callable) -> Speaker:
    return ready(Speaker, weights)


def embedding(speaker: Speaker, stem: np.ndarray, has_vocals: bool = True) -> np.ndarray:
    row = measure(speaker, vocal_stem=pcm.encode(stem), vocals={"has_vocals": has_vocals})["speaker"]
    assert row["model"].startswith("resemblyzer@")
    return np.array(row["embedding"], dtype=np.float32)


def test_one_voice_is_nearer_to_itself_than_to_others(speaker: Speaker, audio: Callable) -> None:
    clips = ["en/counting", "en/quick_brown_fox", "ja/pangrama", "ja/kazoeru"]
    vectors = np.stack([embedding(speaker, load(audio("speech-clips", f"{clip}.wav"))) for clip in clips])
    similarity = vectors @ vectors.T
    assert min(similarity[0, 1], similarity[2, 3]) > similarity[:2, 2:].max() + 0.05


def test_embeddings_are_directions(speaker: Speaker, audio: Callable) -> None:
    vector = embedding(speaker, load(audio("speech-clips", "en/counting.wav")))
    assert vector.shape == (DIM,)
    assert vector.min() >= 0
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_loudness_and_pauses_do_not_matter(speaker: Speaker, audio: Callable) -> None:
    voice = load(audio("speech-clips", "en/quick_brown_fox.wav"))
    faint = 0.05 * np.pad(voice, ((0, 0), (3 * pcm.RATE_HZ, 3 * pcm.RATE_HZ)))
    assert embedding(speaker, voice) @ embedding(speaker, faint) > 0.95


def test_long_songs_are_averaged_over_segments(speaker: Speaker, audio: Callable) -> None:
    voice = load(audio("speech-clips", "en/counting.wav"))
    assert embedding(speaker, np.tile(voice, 6)) @ embedding(speaker, voice) > 0.95


def test_no_vocals_no_singer(speaker: Speaker, audio: Callable) -> None:
    assert not embedding(speaker, load(audio("speech-clips", "en/counting.wav")), has_vocals=False).any()
    assert not embedding(speaker, signals.silence(1.0)).any()


def test_a_short_shout_has_an_embedding(speaker: Speaker, audio: Callable) -> None:
    shout = load(audio("speech-clips", "en/hello_world.wav"), 1.0)
    assert np.linalg.norm(embedding(speaker, shout)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("seconds", "starts"),
    [(0.2, [0]), (1.6, [0]), (1.9, [0]), (2.0, [0, 77]), (4.0, [0, 77, 154, 231])],
)
def test_partial_utterances_cover_the_voice(seconds: float, starts: list[int]) -> None:
    """1.3 a second, each 1.6 s; the last one may reach beyond the end by less than a quarter of its length."""
    assert _partial_starts(int(seconds * 16_000)) == starts


def test_converter_keeps_the_network_and_nothing_else(tmp_path: Path) -> None:
    state = {name.replace("projection", "linear"): value for name, value in SpeakerEncoder().state_dict().items()}
    scale = {"similarity_weight": torch.ones(1), "similarity_bias": torch.ones(1)}
    torch.save({"step": 3, "model_state": state | scale, "optimizer_state": {}}, tmp_path / "pretrained.pt")
    targets = [tmp_path / "first", tmp_path / "second"]
    for target in targets:
        target.mkdir()
        converter.convert(tmp_path, target)
    first, second = ((target / "model.safetensors").read_bytes() for target in targets)
    assert first == second
    loaded = SpeakerEncoder.load(targets[0]).state_dict()
    assert all(torch.equal(loaded[name.replace("linear", "projection")], value) for name, value in state.items())
