"""Discogs-EffNet's tags with small random networks in the published format: ONNX and its metadata."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from essentia.standard import FrameGenerator, TensorflowInputMusiCNN

from stages import pcm
from stages.base import Weights
from stages.nets.discogs_effnet import HOP, PATCH, PublishedNetwork, patches
from stages.nets.musicnn import RATE_HZ, log_mel
from stages.tags_discogs import TagsDiscogs, TagsDiscogsParams
from tests.support import random_checkpoints
from tests.support.audio import silence
from tests.support.tracks import load, measure


def opened(folder: Path, **params) -> TagsDiscogs:
    stage = TagsDiscogs(TagsDiscogsParams(heads=("discogs-effnet-moodtheme",), **params))
    stage.setup({name: Weights(name, folder / name, "0" * 64) for name in stage.models})
    return stage


@pytest.fixture(scope="module")
def song(audio: Callable) -> np.ndarray:
    return load(audio("demo-music", "happy_electronic_1.opus"), 8.0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_scores_of_random_networks_are_means_over_patches(tmp_path, song):
    matrices = random_checkpoints.discogs_effnet(tmp_path, 0)
    row = measure(opened(tmp_path, min_score=0.0), pcm=pcm.encode(song))["tags"]
    mel = log_mel(pcm.mono(pcm.encode(song), RATE_HZ))
    cut = np.stack([mel[at : at + PATCH] for at in range(0, len(mel) - PATCH + 1, HOP)])
    embeddings = sigmoid(cut.mean(1) @ matrices["discogs-effnet"][0])
    house, techno, indie = sigmoid(embeddings @ matrices["discogs-effnet"][1]).mean(0)
    happy, sad = sigmoid(embeddings @ matrices["discogs-effnet-moodtheme"][0]).mean(0)
    expected = {"house": house, "techno": techno, "electronic": max(house, techno), "indie rock": indie, "rock": indie}
    expected |= {"happy": happy, "sad": sad}
    assert dict(zip(row["names"], row["scores"], strict=True)) == pytest.approx(expected, abs=1e-5)
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert row["model"].startswith("discogs-effnet@00000000+discogs-effnet-moodtheme@")


def test_the_no_of_a_yes_or_no_classifier_is_no_tag(tmp_path, song):
    random_checkpoints.discogs_effnet(tmp_path, 0)
    (metadata,) = (tmp_path / "discogs-effnet-moodtheme").glob("*.json")
    told = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(told | {"classes": ["non_happy", "happy"]}))
    names = measure(opened(tmp_path, min_score=0.0), pcm=pcm.encode(song))["tags"]["names"]
    assert "happy" in names
    assert "non_happy" not in names


@pytest.mark.parametrize("seconds", [0.01, 1.0, 2.5])
def test_random_networks_hear_short_and_silent_recordings(tmp_path, seconds):
    random_checkpoints.discogs_effnet(tmp_path, 0)
    row = measure(opened(tmp_path, max_tags=2, min_score=0.0), pcm=pcm.encode(silence(seconds)))["tags"]
    assert len(row["names"]) == len(row["scores"]) == 2


def test_patches_overlap_by_half():
    assert patches(np.zeros(RATE_HZ * 10, np.float32)).shape == ((626 - PATCH) // HOP + 1, PATCH, 96)


def test_the_spectrogram_is_essentias(song):
    """Up to the precision with which musicnn's training set was stored."""
    audio = pcm.mono(pcm.encode(song), RATE_HZ).astype(np.float32)
    theirs = TensorflowInputMusiCNN()
    frames = np.stack([theirs(f) for f in FrameGenerator(audio, frameSize=512, hopSize=256, startFromZero=True)])
    ours = log_mel(audio)[1 : 1 + len(frames)]  # ours are centred: a frame earlier
    assert np.abs(ours - frames[: len(ours)]).mean() < 0.02


def test_a_network_without_the_output_is_named(tmp_path):
    random_checkpoints.discogs_effnet(tmp_path, 0)
    file = tmp_path / "odd" / "odd.onnx"
    file.parent.mkdir()
    network = (tmp_path / "discogs-effnet/discogs-effnet-bsdynamic-1.onnx").read_bytes()
    renamed = network.replace(b"embeddings", b"embeddingz")
    file.write_bytes(renamed)
    file.with_suffix(".json").write_text((tmp_path / "discogs-effnet/discogs-effnet-bsdynamic-1.json").read_text())
    opened_network = PublishedNetwork(file.parent, "cpu")
    with pytest.raises(ValueError, match=r"odd\.onnx.*embeddingz.*is known as its embeddings"):
        opened_network(np.zeros((1, PATCH, 96), np.float32), "embeddings")
    with pytest.raises(FileNotFoundError, match=r"no \.onnx file"):
        PublishedNetwork(tmp_path, "cpu")
