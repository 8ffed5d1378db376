"""`plan --pilot` runs a few real songs and says what a thousand hours would cost."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.curation.pilot import _cost
from pipeline.planning.config import build_config
from pipeline.planning.dag import build_dag, wanted_models
from stages.base import Weights
from tests.support import without_workers
from tests.support.command import asked
from tests.support.places import ROOT


def test_a_pilot_of_real_songs(audio, tmp_path) -> None:
    songs = tmp_path / "songs"
    songs.mkdir()
    for song in sorted(audio("demo-music", "").glob("*.opus"))[:3]:
        shutil.copy(song, songs)
    (songs / "broken.mp3").write_bytes(b"no music")
    out, _ = without_workers.curated(
        "plan", songs, "--stages", "decode,quality,fingerprint,key", "--pilot", "4", "--json"
    )
    pilot = json.loads(out)["pilot"]
    assert pilot["rows"] == {"kept": 3, "filtered": 0, "failed": 1, "total": 4}
    assert 0.001 < pilot["audio_hours"] < 0.2
    stages = {stage["stage"]: stage for stage in pilot["stages"]}
    assert set(stages) == {"scan: decode", "scan: quality", "scan: fingerprint", "decode", "key"}
    for stage in stages.values():
        assert stage["core_hours"] == pytest.approx(1000 / stage["speed"], rel=0.2)
        assert stage["gpu_hours"] == 0
    assert pilot["dataset_gb"] > 0
    assert not list(ROOT.glob(".songmill-pilot-*"))


def test_a_pilot_without_songs() -> None:
    assert "a pilot needs songs" in asked("plan", "--pilot", "3", code=2)


def test_every_stage_of_a_gpu_operator_is_charged_with_what_its_worker_holds():
    config = build_config(input="songs", output=Path("dataset"), profile="full")
    dag = build_dag(config, {name: Weights(name, Path(), "") for name in wanted_models(config)}, {})
    hours = {name: _cost(name, 1.0, 10.0, dag) for name in ("scan: decode", "events", "vocals", "speaker", "caption")}
    assert {name: (cost.core_hours, cost.gpu_hours) for name, cost in hours.items()} == {
        "scan: decode": (10, 0),
        "events": (10, 0),
        "vocals": (0, 7),
        "speaker": (0, 7),
        "caption": (0, 0),
    }
