"""Demucs as the separator, on small random checkpoints in the files of its repositories."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from demucs.apply import BagOfModels, apply_model
from demucs.htdemucs import HTDemucs

from stages import pcm
from stages.base import Weights
from stages.nets.demucs import Demucs
from stages.vocals_demucs import VocalsDemucs
from tests.support.random_checkpoints import HTDEMUCS_SOURCES, htdemucs
from tests.support.tracks import load, measure


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HTDemucs]:
    folder = tmp_path_factory.mktemp("htdemucs")
    (folder / "htdemucs.yaml").write_text(yaml.safe_dump({"models": ["955717e8"]}))
    return folder, htdemucs(folder / "955717e8.safetensors", 0)


@pytest.fixture(scope="module")
def song(audio: Callable[[str, str], Path]) -> np.ndarray:
    return load(audio("demo-music", "happy_electronic_1.opus"), 6.0)


def separated(separator: Demucs, mix: np.ndarray, *sources: str) -> np.ndarray:
    made = np.concatenate(list(separator.separate(mix, sources or ("vocals",))), axis=-1)
    return made if sources else made[0]


def by_the_package(model: Any, mix: np.ndarray, source: str = "vocals") -> np.ndarray:
    """As its command line does it, without random shifts."""
    audio = torch.from_numpy(mix)
    reference = audio.mean(0)
    made = apply_model(model, ((audio - reference.mean()) / reference.std())[None], shifts=0, overlap=0.25)
    return (made[0, HTDEMUCS_SOURCES.index(source)] * reference.std() + reference.mean()).numpy()


@pytest.mark.parametrize("seconds", [6.0, 3.9, 1.3, 0.7, 0.05])
def test_batches_of_a_random_network_give_what_the_package_gives(single, song, seconds) -> None:
    mix = song[:, : round(seconds * 44_100)]
    made = separated(Demucs.load(single[0]), mix)
    assert made.shape == mix.shape
    expected = by_the_package(single[1], mix)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_only_networks_of_a_random_bag_that_share_in_a_source_are_read(song, tmp_path) -> None:
    networks = [htdemucs(tmp_path / f"{number}.safetensors", number) for number in range(3)]
    shares = [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.25], [0.0, 0.0, 0.0, 0.75]]
    (tmp_path / "bag.yaml").write_text(yaml.safe_dump({"models": ["0", "1", "2"], "weights": shares}))
    reference = BagOfModels(networks, [[max(share, 1e-9) for share in row] for row in shares])
    whole = separated(Demucs.load(tmp_path), song, *HTDEMUCS_SOURCES)
    for source, made in zip(HTDEMUCS_SOURCES, whole, strict=True):
        np.testing.assert_allclose(made, by_the_package(reference, song, source), atol=1e-5)
    bag = Demucs.load(tmp_path)
    (tmp_path / "0.safetensors").unlink()  # the one for drums only
    np.testing.assert_allclose(separated(bag, song), by_the_package(reference, song), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 0), (2, 44_100)])
def test_silence_through_a_random_network_stays_silent(single, shape) -> None:
    made = separated(Demucs.load(single[0]), np.zeros(shape, np.float32))
    assert made.shape == shape
    assert not made.any()


def test_the_stage_keeps_the_stem_of_a_random_network(single, song) -> None:
    stage = VocalsDemucs()
    assert stage.models == ("htdemucs",)
    stage.setup({"htdemucs": Weights("htdemucs", single[0], "0" * 64)})
    made = measure(stage, pcm=pcm.encode(song))
    stem = pcm.stereo(made["vocal_stem"])
    assert stem.shape == song.shape
    expected = np.clip(by_the_package(single[1], pcm.stereo(pcm.encode(song))), -1, 1)
    np.testing.assert_allclose(stem, expected, atol=1e-4)
    assert made["vocals"]["model"].startswith("htdemucs@00000000+silero-vad")
    assert 0 <= made["vocals"]["active_ratio"] <= 1
    for column, source in {"bass_stem": "bass", "drum_stem": "drums", "other_stem": "other"}.items():
        expected = np.clip(by_the_package(single[1], pcm.stereo(pcm.encode(song)), source), -1, 1)
        np.testing.assert_allclose(pcm.stereo(made[column]), expected, atol=1e-4)


def test_stems_nobody_wants_are_not_kept(single, song) -> None:
    stage = VocalsDemucs()
    stage.wanted = frozenset({"vocal_stem"})
    stage.setup({"htdemucs": Weights("htdemucs", single[0], "0" * 64)})
    assert set(stage.process({"pcm": pcm.encode(song)})) == {"vocals", "vocal_stem"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"klass": "os.system"}, "it is for os.system"), ({"structure": "{}"}, "expected one of demucs.htdemucs")],
)
def test_a_file_that_would_call_something_else_is_refused(tmp_path, changes, message) -> None:
    """The package itself imports and calls whatever class a file names."""
    (tmp_path / "bag.yaml").write_text(yaml.safe_dump({"models": ["bad"]}))
    htdemucs(tmp_path / "bad.safetensors", 0, **changes)
    with pytest.raises(ValueError, match=message):
        Demucs.load(tmp_path)


def test_a_folder_without_a_bag(tmp_path) -> None:
    with pytest.raises(ValueError, match="found 0"):
        Demucs.load(tmp_path)
