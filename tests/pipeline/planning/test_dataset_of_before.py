"""A dataset that was written before modules moved is resumed as it stands: no fingerprint rests on where code lies."""

import shutil
import sys
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from pipeline.models.store import ModelStore
from pipeline.planning.config import build_config
from pipeline.planning.plan import Plan, make_dag
from stages import registry
from tests.support.command import asked
from tests.support.places import DATA

BEFORE = DATA / "dataset_of_2026_11"
OF_THE_RUN = {"uri", "row_id", "verdict", "timing"}  # the songs lie elsewhere now


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """The folder with its songs and the dataset, in another place."""
    return shutil.copytree(BEFORE, tmp_path / "elsewhere")


def columns(dataset: Path) -> dict[str, dict]:
    """Name of a song -> every column of its row."""
    files = [file for folder in ("shards", "quarantine") for file in (dataset / folder).glob("*.parquet")]
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    return {Path(row["uri"]).name: {k: v for k, v in row.items() if k not in OF_THE_RUN} for row in rows}


def test_it_is_resumed_without_a_column_made_anew(moved: Path, weights):
    plan = Plan.model_validate_json((BEFORE / "dataset/_songmill/plan.json").read_bytes())
    weights(*{model for column in plan.columns.values() for model in column.models})
    said = asked("curate", moved / "dataset", "--quiet")
    assert "3 rows = 2 kept + 0 filtered + 1 failed (0 worked on, 3 unchanged)" in said
    assert "3 moved" in said
    assert set(columns(moved / "dataset")) == {"first.mp3", "second.mp3", "notes.flac"}
    assert columns(moved / "dataset") == columns(BEFORE / "dataset")


@pytest.mark.models
def test_a_class_that_moves_keeps_its_fingerprints(moved: Path, monkeypatch: pytest.MonkeyPatch):
    config = build_config(input=str(moved / "songs"), output=moved / "new")
    before = make_dag(config, ModelStore()).fingerprints
    home, kind = ModuleType("somewhere.else"), registry.stage_class("key")
    home.Key = type("Key", (kind,), {"__module__": home.__name__, "Params": kind.Params})
    monkeypatch.setitem(sys.modules, home.__name__, home)
    monkeypatch.setitem(registry.ENGINES, "key", {"essentia": f"{home.__name__}:Key"})
    assert registry.stage_class("key") is home.Key
    assert make_dag(config, ModelStore()).fingerprints == before


def test_every_engine_has_a_name_of_its_own_and_a_users_class_goes_by_its_place():
    engines = {(name, engine): target for name, of in registry.ENGINES.items() for engine, target in of.items()}
    names = [registry.recorded_name(registry.stage_class(*engine)) for engine in engines]
    assert len({*names}) == len(names)
    own = registry.stage_class("length", "tests.support.toy_stages:Length")
    assert registry.recorded_name(own) == "tests.support.toy_stages:Length"
