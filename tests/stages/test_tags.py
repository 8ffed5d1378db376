import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.models.convert import musicnn as converter
from stages import pcm
from stages.nets.musicnn import MELS, PATCH, Musicnn, _Filters
from stages.tags import Tags
from tests.support import audio as signals
from tests.support.tracks import load, measure, ready


@pytest.fixture(scope="module")
def tags(weights: Callable) -> Tags:
    return ready(Tags, weights)


def scored(tags: Tags, recording: np.ndarray) -> dict[str, float]:
    row = measure(tags, pcm=pcm.encode(recording))["tags"]
    return dict(zip(row["names"], row["scores"], strict=True))


@pytest.mark.parametrize(
    ("entry", "track", "among_the_first"),
    [
        ("demo-music", "calm_acoustic_1.opus", {"guitar", "acoustic", "folk"}),
        ("demo-music", "energetic_electronic_2.opus", {"techno", "electronic", "fast"}),
        ("demo-songs", "audio_ace_step_1_5_split_4b-1.mp3", {"rock", "guitar"}),
        ("demo-songs", "audio_ace_step_1_5_split-1.mp3", {"hip-hop", "rnb"}),
    ],
)
def test_tags_fit_the_music(tags: Tags, audio: Callable, entry: str, track: str, among_the_first: set[str]) -> None:
    scores = scored(tags, load(audio(entry, track), 24.0))
    assert among_the_first <= set(list(scores)[:4])


def test_tags_are_few_sorted_and_named_once(weights: Callable, audio: Callable) -> None:
    strict = ready(Tags, weights, min_score=0.15, max_tags=3)
    row = measure(strict, pcm=pcm.encode(load(audio("demo-music", "calm_acoustic_1.opus"), 12.0)))["tags"]
    assert len(row["names"]) == len(set(row["names"])) == 3
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert all(name == name.lower() for name in row["names"])
    assert row["model"].startswith("musicnn-mtt@")
    assert "+musicnn-msd@" in row["model"]


def test_a_tag_of_both_vocabularies_has_its_higher_score(tags: Tags, audio: Callable) -> None:
    """MagnaTagATune knows "guitar" and so does the Million Song Dataset."""
    scores = scored(tags, load(audio("demo-music", "calm_acoustic_1.opus"), 12.0))
    vocabularies = [set(labels) for _, labels in tags._taggers]
    assert "guitar" in vocabularies[0] & vocabularies[1]
    assert scores["guitar"] > 0.5


@pytest.mark.parametrize("seconds", [0.01, 1.0, 2.9, 3.1])
def test_short_and_silent_recordings(tags: Tags, seconds: float) -> None:
    assert all(0.1 <= score <= 1 for score in scored(tags, signals.silence(seconds)).values())
    assert scored(tags, signals.tone(440, seconds)) == scored(tags, signals.tone(440, seconds))


def test_converter_names_every_parameter_of_the_network() -> None:
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in Musicnn().state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert {name: tensor.shape for name, tensor in converter.renamed(_tensorflow_variables()).items()} == shapes


def test_network_equals_the_tensorflow_graph_written_out() -> None:
    """One timbral and one temporal filter on random weights against the sums the original's definition asks for."""
    variables = _tensorflow_variables()
    network = Musicnn()
    network.load_state_dict(
        {name: torch.from_numpy(tensor.copy()) for name, tensor in converter.renamed(variables).items()}
    )
    network.eval()
    mel = np.random.default_rng(1).random((PATCH, MELS), dtype=np.float32)
    timbral = network.timbral[0](torch.from_numpy(mel)[None, None])[0, 5].detach().numpy()
    temporal = network.temporal[0](torch.from_numpy(mel)[None, None])[0, 7].detach().numpy()

    def normalised(x: np.ndarray, number: int, channel: int) -> np.ndarray:
        gamma, beta, mean, variance = (
            variables[f"batch_normalization_{number}/{name}"][channel]
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return gamma * (np.maximum(x, 0) - mean) / np.sqrt(variance + 1e-3) + beta

    tall = variables["conv2d/kernel"][:, :, 0, 5]
    padded = np.pad(mel, ((3, 3), (0, 0)))
    at_60 = [np.sum(padded[60:67, low : low + 38] * tall) for low in range(MELS - 37)] + variables["conv2d/bias"][5]
    np.testing.assert_allclose(timbral[60], normalised(np.array(at_60), 1, 5).max(), rtol=1e-4)

    long = variables["conv2d_2/kernel"][:, 0, 0, 7]
    padded = np.pad(mel, ((63, 64), (0, 0)))  # TensorFlow's "same" puts the odd zero at the end
    at_60 = long @ padded[60 : 60 + 128] + variables["conv2d_2/bias"][7]
    np.testing.assert_allclose(temporal[60], normalised(at_60, 3, 7).max(), rtol=1e-4)


def test_filters_normalise_the_strongest_response_as_if_they_had_normalised_all() -> None:
    """Whatever the sign of the norm's weight, which decides whether the greatest response counts or the least."""
    torch.manual_seed(0)
    filters = _Filters(6, 7, 38).eval()
    filters.norm.weight.data = torch.tensor([1.5, -2.0, 0.0, -0.3, 0.7, -1.0])
    filters.norm.bias.data.normal_()
    filters.norm.running_mean.normal_()
    x = torch.randn(2, 1, 20, MELS)
    every = F.relu(filters.conv(F.pad(x, filters.pad))).movedim(1, 3).flatten(0, 2)
    defined = filters.norm(every).unflatten(0, (2, 20, -1)).amax(2).transpose(1, 2)
    torch.testing.assert_close(filters(x), defined)


def test_labels_are_read_without_running_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, targets = tmp_path / "source", [tmp_path / "first", tmp_path / "second"]
    for folder in (source / "MTT_musicnn", *targets):
        folder.mkdir(parents=True)
    (source / "configuration.py").write_text("raise SystemExit\nMTT_LABELS = ['guitar', 'no vocals']\n")
    monkeypatch.setattr("pipeline.models.convert.tf_checkpoint.load", lambda _: _tensorflow_variables())
    for target in targets:
        converter.convert(source, target)
    assert json.loads((targets[0] / "labels.json").read_text()) == ["guitar", "no vocals"]
    first, second = ((target / "model.safetensors").read_bytes() for target in targets)
    assert first == second


def _tensorflow_variables() -> dict[str, np.ndarray]:
    """Random variables with the names and shapes of the original's graph."""
    random = np.random.default_rng(0)
    kernels = [(7, 38, 1, 204), (7, 67, 1, 204), *((length, 1, 1, 51) for length in (128, 64, 32))]
    kernels += [(7, 561, 1, 64), (7, 64, 1, 64), (7, 64, 1, 64)]
    norms = [1, 204, 204, 51, 51, 51, 64, 64, 64, 1506, 200]
    shapes: dict[str, tuple[int, ...]] = {}
    for number, kernel in enumerate(kernels):
        layer = f"conv2d_{number}" if number else "conv2d"
        shapes |= {f"{layer}/kernel": kernel, f"{layer}/bias": kernel[-1:]}
    for number, channels in enumerate(norms):
        layer = f"batch_normalization_{number}" if number else "batch_normalization"
        shapes |= {f"{layer}/{name}": (channels,) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    shapes |= {"dense/kernel": (1506, 200), "dense/bias": (200,), "dense_1/kernel": (200, 50), "dense_1/bias": (50,)}
    return {name: random.random(shape, dtype=np.float32) for name, shape in shapes.items()}
