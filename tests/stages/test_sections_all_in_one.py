"""All-In-One as the engine of sections, on small random checkpoints in the files of its repository."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import pcm
from stages.base import Weights
from stages.nets.all_in_one import STEMS, AllInOne
from stages.sections_all_in_one import SectionsAllInOne
from tests.support.random_checkpoints import all_in_one
from tests.support.tracks import measure

RATE_HZ = 44_100
LABELS = {"start", "end", "intro", "outro", "break", "bridge", "inst", "solo", "verse", "chorus"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("allinone")
    all_in_one(folder / "harmonix-fold0-0vra4ys2.pth", 0)
    return folder


def stems(seconds: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise whose level differs from eight seconds to the next, with a click twice a second on the drums."""
    random = np.random.default_rng(seed)
    samples = round(seconds * RATE_HZ)
    levels = random.uniform(20, 6000, 1 + samples // (8 * RATE_HZ)).repeat(8 * RATE_HZ)[:samples]
    made = {name: (random.standard_normal(samples) * levels * 0.2).astype(np.int16) for name in STEMS}
    made["drums"][:: RATE_HZ // 2] = 30_000
    return made


def stage_of(folder: Path) -> SectionsAllInOne:
    stage = SectionsAllInOne()
    stage.setup({name: Weights(name, folder, "0" * 64) for name in stage.models})
    return stage


def columns_of(made: dict[str, np.ndarray]) -> dict[str, bytes]:
    """Canonical PCM of the stems, the same on both channels."""
    names = {"bass": "bass_stem", "drums": "drum_stem", "other": "other_stem", "vocals": "vocal_stem"}
    return {names[name]: stem.repeat(2).astype("<i2").tobytes() for name, stem in made.items()}


def test_a_random_checkpoint_gives_the_segments_and_tempo_of_its_package(folder) -> None:
    network = all_in_one(folder.parent / "same.pth", 0)
    from allin1_infer import postprocessing
    from allin1_infer.spectrogram import compute_spectrogram_from_stem_arrays

    given = stems(64.0)
    with torch.inference_mode():
        logits = network(torch.from_numpy(compute_spectrogram_from_stem_arrays(given, RATE_HZ))[None])
    expected = postprocessing.postprocess_functional_structure(logits, network.cfg)
    beats = postprocessing.postprocess_metrical_structure(logits, network.cfg)["beats"]

    made = measure(stage_of(folder), **columns_of(given))["sections"]
    assert len(expected) > 1
    assert [part["label"] for part in made["items"]] == [segment.label for segment in expected]
    np.testing.assert_allclose([part["start_s"] for part in made["items"]], [part.start for part in expected])
    assert made["bpm"] == postprocessing.estimate_tempo_from_beats(beats)
    assert made["model"].startswith("all-in-one-fold0@00000000")


@pytest.mark.parametrize("seconds", [0.005, 0.3, 8.0, 40.0])
def test_segments_of_random_weights_cover_a_track_of_any_length(folder, seconds) -> None:
    check_cover(measure(stage_of(folder), **columns_of(stems(seconds)))["sections"], seconds)


def test_silence_through_random_weights_is_one_part(folder) -> None:
    silent = {name: np.zeros(20 * RATE_HZ, np.int16) for name in STEMS}
    made = measure(stage_of(folder), **columns_of(silent))["sections"]
    check_cover(made, 20.0)
    assert len(made["items"]) == 1


def test_an_empty_track_has_no_parts(folder) -> None:
    made = measure(stage_of(folder), **columns_of(stems(0.0)))["sections"]
    assert made["items"] == []
    assert made["bpm"] is None


def test_an_ensemble_of_random_checkpoints_is_the_mean_of_their_logits(tmp_path) -> None:
    networks = [all_in_one(tmp_path / f"fold{seed}.pth", seed) for seed in range(2)]
    heard = torch.randn(1, 4, 400, 81)
    with torch.inference_mode():
        made = AllInOne.load(tmp_path)._network(heard).logits_function
        expected = sum(network(heard).logits_function for network in networks) / 2
    torch.testing.assert_close(made, expected)


def test_a_folder_without_a_checkpoint(tmp_path) -> None:
    with pytest.raises(ValueError, match="found none"):
        AllInOne.load(tmp_path)


def test_stems_mix_to_mono_as_madmom_reads_them() -> None:
    from stages.sections_all_in_one import _mono

    frames = np.array([[-3, 0], [3, 0], [5, 8], [-32768, -32768]], np.int16)
    np.testing.assert_array_equal(_mono(frames.tobytes()), [-1, 1, 6, -32768])
    assert frames.shape[1] == pcm.CHANNELS


def check_cover(sections: dict[str, Any], seconds: float) -> None:
    """The parts are contiguous, named, and cover the track."""
    items = sections["items"]
    if seconds < 0.01:
        assert items == []
        return
    assert items[0]["start_s"] == 0
    assert items[-1]["end_s"] == pytest.approx(seconds, abs=1e-4)
    assert all(part["start_s"] < part["end_s"] for part in items)
    assert all(a["end_s"] == b["start_s"] for a, b in pairwise(items))
    assert {part["label"] for part in items} <= LABELS
