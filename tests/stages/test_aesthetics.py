"""Windows and weighting around the Audiobox network; the network itself comes from its library."""

import sys

import pytest
import torch

from stages import pcm
from stages.aesthetics import Aesthetics
from tests.support.audio import silence, tone


class Loudness(torch.nn.Module):
    """In the network's place: every axis is a window's mean magnitude over what is masked in."""

    target_transform = {axis: {"mean": 5.0, "std": 2.0} for axis in ("CE", "CU", "PC", "PQ")}

    def forward(self, batch):
        score = (batch["wav"].abs() * batch["mask"]).sum((1, 2)) / batch["mask"].sum((1, 2))
        return dict.fromkeys(self.target_transform, score)


@pytest.fixture
def aesthetics() -> Aesthetics:
    stage = Aesthetics()
    stage._network = Loudness()
    return stage


def test_windows_count_by_how_much_of_them_is_music(aesthetics):
    half_silent = torch.cat([torch.from_numpy(tone(440, 10, dbfs=0)), torch.from_numpy(silence(5))], dim=1).numpy()
    scores = aesthetics.process({"pcm": pcm.encode(half_silent)})["aesthetics"]
    assert scores["pq"] == pytest.approx(5 + 2 * 0.6366 * 10 / 15, abs=0.01)  # the mean of |sin| is 2 / pi
    assert scores["ce"] == scores["cu"] == scores["pc"] == scores["pq"]


def test_many_windows_come_in_batches(aesthetics):
    scores = aesthetics.process({"pcm": pcm.encode(tone(440, 65, dbfs=0))})["aesthetics"]
    assert scores["ce"] == pytest.approx(5 + 2 * 0.6366, abs=0.01)


def test_no_audio_has_no_scores(aesthetics):
    assert aesthetics.process({"pcm": b""})["aesthetics"].get("pq") is None


def test_the_missing_library_is_said_clearly(monkeypatch):
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", None)
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics.model.aes", None)
    with pytest.raises(RuntimeError, match="pip install"):
        Aesthetics().setup({})
