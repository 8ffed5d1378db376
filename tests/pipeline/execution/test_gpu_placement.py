"""Stages with a share of a GPU, on a cluster that only says that it has one: placement is shown, no kernel runs."""

from pathlib import Path

import pytest

from pipeline.planning.config import build_addition, build_config
from tests.support import audio
from tests.support.command import asked, queried, songmill

STAGES = {"placed": "Placed", "placed_too": "PlacedToo"}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    folder = tmp_path_factory.mktemp("placement")
    (folder / "songs").mkdir()
    for number in range(3):
        audio.write(folder / "songs" / f"{number}.wav", audio.tone(220.0 * (number + 1), seconds=6))
    config = folder / "run.yaml"
    stages = "\n".join(f"  {name}: {{engine: 'tests.support.toy_stages:{kind}'}}" for name, kind in STAGES.items())
    config.write_text(f"stages:\n  decode: {{}}\n{stages}\n")
    return ("curate", folder / "songs", "--config", config, "--out", folder / "dataset", "--set", "dedup.threshold=1")


def test_too_few_gpus_are_told_with_the_shares(shared_cluster, command) -> None:
    settings = ("--set", "resources.gpus={placed: 2, placed_too: 0.5}", "--set", "resources.wait_for_nodes_s=0")
    _, said = songmill(*command, *settings, code=1, **shared_cluster)
    assert "has the GPUs that a worker takes: 2 for placed 2, placed_too 0.5; the most that a node has is 1" in said


def test_stages_with_shares_of_a_gpu_run_in_one_process_beside_the_cpu_stages(shared_cluster, command) -> None:
    songmill(*command, "--set", "resources.gpus={placed: 0.3, placed_too: 0.2}", **shared_cluster)
    rows = queried(Path(str(command[5])), "select placed, placed_too from tracks")
    assert len(rows) == 3
    for column in STAGES:
        assert {(row[column]["device"], row[column]["visible"]) for row in rows} == {("cuda", "0")}
    assert {row["placed"]["pid"] for row in rows} == {row["placed_too"]["pid"] for row in rows}


def test_operators_around_one_that_waits_share_the_cores_of_the_scan(shared_cluster, command, tmp_path) -> None:
    _, songs, _, config, _, _, *rest = command
    stages = "".join(
        f"  {name}: {{engine: 'tests.support.toy_stages:{name.capitalize()}'}}\n" for name in ("asked", "length")
    )
    Path(config).with_name("asked.yaml").write_text(f"stages:\n  decode: {{}}\n{stages}")
    out = tmp_path / "dataset"
    songmill("curate", songs, "--config", Path(config).with_name("asked.yaml"), "--out", out, *rest, **shared_cluster)
    rows = queried(out, "select asked, length from tracks")
    assert [row["length"]["seconds"] for row in rows] == [pytest.approx(6, abs=0.1)] * 3
    assert all(row["asked"]["pid"] for row in rows)


def test_a_share_that_names_no_stage_is_refused(command) -> None:
    said = asked(*command, "--set", "resources.gpus={vocal: 0.3}", code=2)
    assert "resources.gpus: no stage named 'vocal'" in said


def test_the_full_profile_fits_one_gpu_and_knows_its_features() -> None:
    config = build_config(profile="full", add=["ssl", "text_embedding"], input="songs", output="x")
    assert config.stages["ssl"].engine == "mert-mhubert"
    assert config.stages["vocals"].engine == "demucs"
    assert sum(config.resources.gpus.values()) == pytest.approx(1)
    added = build_addition("x", "full", {}, add=["text_embedding"])
    assert added.stages["text_embedding"].engine == "umt5"
    assert added.resources.gpus["text_embedding"] > 0
    small = build_config(add=["ssl"], input="songs", output="x")
    assert small.stages["ssl"].engine is None
    assert not small.resources.gpus
