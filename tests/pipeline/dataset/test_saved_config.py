"""Settings that a dataset remembers lead on: from any folder, after a move, and before a first row is there."""

import shutil
from pathlib import Path

import pytest

from pipeline.dataset.saved_config import (
    change_gates,
    planned_settings,
    relocated,
    remember_config,
    remember_plan,
    remembered_config,
)
from pipeline.errors import DataProblem
from pipeline.planning.config import build_config
from pipeline.planning.dag import Dag, build_dag
from pipeline.planning.plan import Plan, make_plan
from schemas.config import CurateConfig
from schemas.dataset import Layout
from stages.text.bpe import BUILT_IN
from tests.support.command import asked

STAGES = ("decode", "quality", "fingerprint")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Songs, a vocabulary and a dataset side by side; the current folder."""
    home = tmp_path / "home"
    (home / "songs").mkdir(parents=True)
    (home / "dataset" / "_songmill").mkdir(parents=True)
    shutil.copy(BUILT_IN, home / "words.json")
    monkeypatch.chdir(home)
    return home


def configured(vocabulary: str = "words.json", songs: str = "songs") -> CurateConfig:
    config = build_config(only=STAGES, input=songs, output=Path("dataset"))
    words = {"engine": "tests.support.toy_stages:Words", "vocabulary": vocabulary}
    return CurateConfig.model_validate(
        config.model_dump() | {"stages": {**config.model_dump()["stages"], "lyric_tokens": words}}
    )


def dag_of(config: CurateConfig) -> Dag:
    return build_dag(config, {}, {})


def remember(home: Path, songs: str = "songs") -> tuple[Layout, Plan]:
    config, layout = configured(songs=songs), Layout.at(home / "dataset")
    dag = dag_of(config)
    plan = make_plan(config, dag)
    remember_plan(layout, plan)
    remember_config(layout, config, dag)
    return layout, plan


def moved(home: Path) -> Path:
    return Path(shutil.move(home, home.with_name(f"{home.name} moved")))


def test_they_lead_on_from_another_folder(home, tmp_path, monkeypatch):
    layout, plan = remember(home)
    monkeypatch.chdir(tmp_path)
    config = remembered_config(layout)
    assert config.input.path == str(home / "songs")
    assert config.stages["lyric_tokens"].params["vocabulary"] == str(home / "words.json")
    assert make_plan(config, dag_of(config)).id == plan.id


@pytest.mark.parametrize("songs", ["songs", "songs/*.flac"])
def test_they_lead_on_when_all_has_moved_together_twice(home, tmp_path, monkeypatch, songs):
    _, plan = remember(home, songs)
    monkeypatch.chdir(tmp_path)
    now = moved(home)
    for _ in range(2):
        layout = Layout.at(now / "dataset")
        config = remembered_config(layout)
        assert config.input.path == str(now / songs)
        assert config.output == str(now / "dataset")
        assert config.stages["lyric_tokens"].params["vocabulary"] == str(now / "words.json")
        assert make_plan(config, dag_of(config)).id == plan.id
        remember_config(layout, config, dag_of(config))
        now = moved(now)


def test_only_the_dataset_has_moved(home):
    remember(home)
    (home / "far").mkdir()
    layout = Layout.at(Path(shutil.move(home / "dataset", home / "far" / "dataset")))
    config = remembered_config(layout)
    assert config.input.path == str(home / "songs")
    assert config.stages["lyric_tokens"].params["vocabulary"] == str(home / "words.json")


def test_what_is_gone_is_told_with_both_places(home, tmp_path, monkeypatch):
    layout, _ = remember(home)
    (home / "words.json").unlink()
    with pytest.raises(DataProblem, match=rf"lyric_tokens\.vocabulary should be at {home}/words\.json, but nothing"):
        remembered_config(layout)
    monkeypatch.chdir(tmp_path)
    now = moved(home)
    places = rf"at {now}/words\.json or {home}/words\.json, but nothing is there\. Put it back"
    with pytest.raises(DataProblem, match=places):
        remembered_config(Layout.at(now / "dataset"))
    shutil.copy(BUILT_IN, now / "words.json")
    shutil.rmtree(now / "songs")
    with pytest.raises(DataProblem, match=f"its songs should be at {now}/songs or {home}/songs"):
        remembered_config(Layout.at(now / "dataset"))


def test_a_plan_leads_on_too(home, tmp_path, monkeypatch):
    layout, plan = remember(home)
    stages = [plan.columns["lyric_tokens"]]
    assert stages[0].params["vocabulary"] == str(home / "words.json")
    monkeypatch.chdir(tmp_path)
    now = moved(home)
    layout = Layout.at(now / "dataset")
    plan = Plan.model_validate_json(layout.store.get(layout.plan))
    settings = planned_settings(layout.url, plan, stages)
    assert settings["lyric_tokens"]["vocabulary"] == str(now / "words.json")
    anew = relocated(plan, layout)
    assert (anew.id, anew.root) == (plan.id, now / "dataset")
    assert anew.columns["lyric_tokens"].params["vocabulary"] == str(now / "words.json")
    (now / "words.json").unlink()
    with pytest.raises(DataProblem, match=rf"{now}/words\.json or {home}/words\.json"):
        planned_settings(layout.url, plan, stages)
    given = planned_settings(layout.url, plan, stages, given=["lyric_tokens.vocabulary"])
    assert given["lyric_tokens"]["engine"] == "tests.support.toy_stages:Words"


def test_how_a_path_is_spelt_changes_no_plan(home):
    (home / "link").symlink_to(home)
    spellings = ["words.json", "./words.json", str(home / "words.json"), "songs/../words.json", "link/words.json"]
    plans = {make_plan(config, dag_of(config)).id for config in map(configured, spellings)}
    assert len(plans) == 1


def test_settings_of_an_earlier_release_are_read(home, tmp_path, monkeypatch):
    layout, plan = remember(home)
    old = Plan.model_validate_json(layout.store.get(layout.plan)).model_dump_json(exclude={"root"})
    (home / "dataset/_songmill/plan.json").write_text(old)
    library = (
        (home / "dataset/_songmill/config.json")
        .read_text()
        .replace('"lyrics": null', f'"lyrics": "{home}/library.parquet"')
    )
    assert "library.parquet" in library
    (home / "dataset/_songmill/config.json").write_text(library)
    monkeypatch.chdir(tmp_path)
    layout = Layout.at(moved(home) / "dataset")
    config = remembered_config(layout)
    assert make_plan(config, dag_of(config)).id == plan.id
    assert Plan.model_validate_json(layout.store.get(layout.plan)).id == plan.id


def test_other_thresholds_leave_paths_as_they_were(home, tmp_path, monkeypatch):
    layout, plan = remember(home)
    monkeypatch.chdir(tmp_path)
    now = moved(home)
    layout = Layout.at(now / "dataset")
    change_gates(layout, plan.model_copy(update={"gates": {"audio": {"min_duration_s": 3.0}}}))
    config = remembered_config(layout)
    assert config.gates["audio"] == {"min_duration_s": 3.0}
    assert config.input.path == str(now / "songs")


def test_a_dataset_without_a_row_says_how_to_go_on(home):
    layout, _ = remember(home)
    (home / "dataset/_songmill/plan.json").unlink()
    for command in (("inspect",), ("verify",), ("whatif",), ("quarantine",), ("explore",), ("forget",)):
        said = asked(command[0], layout.url, code=1)
        assert f"holds no rows yet, for its first run has not come so far: songmill curate {layout.url}" in said
    assert "holds no rows yet" in asked("inspect", layout.url, "--sql", "select 1", code=1)
    assert "holds no rows yet" in asked("curate", layout.url, "--add", "preview", code=1)
    assert "tests.support.toy_stages" in asked("plan", layout.url)


def test_a_folder_of_songs_alone_is_not_enough(home):
    said = asked("curate", home / "songs", code=2)
    assert f"songmill curate {home / 'songs'} --out DATASET" in said


def test_what_is_no_part_of_a_plan_is_remembered_too(home):
    layout = Layout.at(home / "dataset")
    stages = {"decode": {"max_channels": 2, "limit_s": 60.0}}
    config = CurateConfig.model_validate({"input": {"path": "songs"}, "output": layout.url, "stages": stages})
    dag = dag_of(config)
    remember_plan(layout, make_plan(config, dag))
    remember_config(layout, config, dag)
    params = remembered_config(layout).stages["decode"].params
    assert (params["max_channels"], params["limit_s"]) == (2, 60.0)
    assert "max_rate_hz" not in params  # nobody gave it, so a later release may have another
