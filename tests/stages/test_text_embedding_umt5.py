"""umT5 as the engine of `text_embedding`, on a small random checkpoint in the released files."""

from pathlib import Path

import numpy as np
import pytest

from stages.base import Weights
from stages.text_embedding_umt5 import TextEmbeddingUmt5
from tests.support import tiny_checkpoint
from tests.support.tracks import measure
from training.sampling.text_encoder import load_text_encoder

CAPTION = {"simplified": "calm folk", "expanded": "a calm folk song with guitar, at a slow pace", "descriptive": " "}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.build(tmp_path_factory.mktemp("checkpoint") / "random") / "umt5-base"


def stage(folder: Path, **params: object) -> TextEmbeddingUmt5:
    made = TextEmbeddingUmt5(TextEmbeddingUmt5.Params(**params))
    made.setup({"umt5-base": Weights("umt5-base", folder, "0" * 64)})
    return made


def states(item: dict) -> np.ndarray:
    return np.frombuffer(item["data"], "<f2").reshape(item["tokens"], item["dim"])


def test_captions_through_a_random_checkpoint_are_read_as_the_sampler_reads_prompts(folder: Path) -> None:
    items = measure(stage(folder), caption=CAPTION)["text_embedding"]
    assert [item["variant"] for item in items] == ["simplified", "expanded"]
    assert all(item["model"] == "umt5-base@00000000" for item in items)
    prompts, mask = load_text_encoder(folder).encode([CAPTION["simplified"], CAPTION["expanded"]])
    for item, expected, real in zip(items, prompts, mask, strict=True):
        np.testing.assert_allclose(states(item), expected[real == 1], atol=2e-3, rtol=2e-3)


def test_long_captions_through_a_random_checkpoint_are_cut(folder: Path) -> None:
    whole = measure(stage(folder), caption=CAPTION)["text_embedding"][1]
    cut = measure(stage(folder, max_tokens=5), caption=CAPTION)["text_embedding"][1]
    assert whole["tokens"] > cut["tokens"] == 5
