"""The trainer's benchmark: its arithmetic, its report, and that it compares the same training."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.trainer import report, require_same_losses, write_codec
from benchmarks.trainer_case import Case, Measurement, measure
from stages.nets.dcae import LatentEncoder
from tests.support.toy_dataset import write_dataset


def _measurement(name: str, *, seconds: tuple[float, ...], **found: object) -> Measurement:
    case = Case(dataset=Path("dataset"), name=name, codec=None, batch_size=2, steps=len(seconds))
    others = {"waits": (0.0,) * len(seconds), "losses": (1.0, 0.5), "songs": 6, "parameters": 1, "peak_bytes": 1 << 30}
    return Measurement(case=case, seconds=seconds, **(others | found))


def test_a_slow_step_more_moves_the_typical_one_little_and_the_share_of_waiting_by_its_length() -> None:
    measured = _measurement("stored", seconds=(1.0, 1.0, 6.0), waits=(0.1, 0.1, 0.9))
    assert measured.step_s == 1.0
    assert measured.wait == pytest.approx((0.1 + 0.1 + 5.4) / 8)


def test_ratios_are_to_stored_features() -> None:
    said = report([_measurement("stored", seconds=(0.2, 0.2)), _measurement("from audio", seconds=(3.0, 1.0))])
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert rows[1] == "| stored | 2 | 0.200 | 5.000 | 0.0% | 1.00 | 1.0x |"
    assert rows[2] == "| from audio | 2 | 2.000 | 0.500 | 0.0% | 1.00 | 10.0x |"


def test_other_losses_are_another_training() -> None:
    stored = _measurement("stored", seconds=(1.0,) * 3, losses=(1.0, 0.5, 0.4))
    require_same_losses(stored, _measurement("from audio", seconds=(1.0,), losses=(1.0, 0.5)))
    with pytest.raises(RuntimeError, match=r"step 2: stored has loss 0.5, from audio 0.6"):
        require_same_losses(stored, _measurement("from audio", seconds=(1.0,), losses=(1.0, 0.6)))


def test_the_random_tiny_codec_makes_latents(tmp_path: Path) -> None:
    codec = write_codec(tmp_path, "tiny")
    assert LatentEncoder.load(codec / "music_dcae_f8c8", codec / "music_vocoder")
    assert json.loads((codec / "music_vocoder" / "config.json").read_text())


def test_the_first_step_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # other tests go on in this process
    dataset = write_dataset(tmp_path / "songs", 4, shards=1, frames=(9, 12))
    measured = measure(Case(dataset=dataset, name="stored", codec=None, batch_size=2, steps=2))
    assert (len(measured.losses), len(measured.seconds), len(measured.waits)) == (3, 2, 2)
    assert measured.songs == 4
    assert all(0 <= share <= 1 for share in measured.waits)
    assert measured.peak_bytes > 100 << 20
