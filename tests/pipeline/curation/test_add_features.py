"""Features added to a dataset that exists: shards stay as they are, kills cost nothing, failed rows stay null."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.ledger import Ledger
from schemas.commits import Commit
from schemas.dataset import FOOTER_FINGERPRINTS, FOOTER_SCHEMA_VERSION, FOOTER_SHARD_DIGEST, Layout
from schemas.files import file_digest
from tests.support import tiny_checkpoint, without_workers
from tests.support.audio import noise, write
from tests.support.command import asked, inspected, kill_when
from tests.support.tracks import load

Audio = Callable[[str, str], Path]
PREVIEW = ("--add", "preview", "--set=preview.engine=tests.support.toy_stages:Preview")
SECONDS = {"a": 2.0, "b": 14.0, "c": 5.0, "d": 1.5, "e": 3.0}  # by title


@pytest.fixture(scope="module")
def songs(audio: Audio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of a real song and a file that is none."""
    folder = tmp_path_factory.mktemp("songs")
    song = load(audio("demo-music", "calm_acoustic_1.opus"), seconds=14)
    for title, seconds in SECONDS.items():
        write(folder / f"{title}.flac", song[:, : round(seconds * 44_100)], metadata={"title": title})
    (folder / "text.wav").write_text("no audio at all\n")
    return folder


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of random weights."""
    return tiny_checkpoint.build(tmp_path_factory.mktemp("checkpoint") / "random")


@pytest.fixture(scope="module")
def made_by(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The command that makes the dataset: two songs a shard, one worker."""
    dataset = tmp_path_factory.mktemp("datasets") / "dataset"
    settings = ("resources.rows_per_shard=2", "resources.workers=1", "audio.min_duration_s=1")
    return ("curate", songs, "--out", dataset, "--stages", "decode", *(f"--set={setting}" for setting in settings))


@pytest.fixture(scope="module")
def curated(made_by: tuple[object, ...]) -> Path:
    without_workers.curated(*made_by)
    return Path(str(made_by[3]))


def state(dataset: Path, pattern: str) -> dict[str, tuple[str, int]]:
    """Files with their bytes and time of modification."""
    return {path.name: (file_digest(path), path.stat().st_mtime_ns) for path in dataset.glob(pattern)}


def committed_features(dataset: Path, name: str) -> dict[str, tuple[str, int]]:
    """Those that a record names."""
    named = {
        Path(file).name for file in Ledger(Layout.at(dataset)).read().files if file.startswith(f"features/{name}/")
    }
    return {file: found for file, found in state(dataset, f"features/{name}/*.parquet").items() if file in named}


def column(dataset: Path, name: str) -> list[dict[str, Any] | None]:
    """A feature of all rows, by title; shards and feature files have the same rows in the same order."""
    found = {}
    for shard in dataset.glob("shards/*.parquet"):
        rows = pq.read_table(shard, columns=["row_id", "title"]).to_pylist()
        features = pq.read_table(dataset / "features" / name / shard.name).to_pylist()
        assert [row["row_id"] for row in rows] == [row["row_id"] for row in features]
        found |= {row["title"]: feature[name] for row, feature in zip(rows, features, strict=True)}
    return [found[title] for title in SECONDS]


def heard(dataset: Path) -> list[str | None]:
    return [value and value["heard"] for value in column(dataset, "preview")]


class TestTheLifeOfFeatures:
    """Added, added under a kill, found done, made anew with songs that are gone. The tests run in order."""

    def test_latents_of_a_random_codec_and_ssl_come_with_as_many_frames(self, curated, songs, codec):
        shards = state(curated, "shards/*.parquet")
        add = ("curate", "--add", "latents,ssl", curated, "--set=resources.workers=1")
        assert "give --set latents.codec=" in asked(*add, code=2)
        assert f"no such file {songs}/music_dcae_f8c8/config.json" in asked(
            *add, f"--set=latents.codec={songs}", code=2
        )
        without_workers.curated(*add, f"--set=latents.codec={codec}")
        latents = [np.frombuffer(value["data"], "<f2").reshape(-1, 8, 16) for value in column(curated, "latents")]
        assert [len(frames) for frames in latents] == [21, 150, 53, 16, 32]
        assert [value["frames"] for value in column(curated, "latents")] == [21, 150, 53, 16, 32]
        assert [value["whisper_base"]["frames"] for value in column(curated, "ssl")] == [21, 150, 53, 16, 32]
        assert all(0.01 < frames.std() < 10 for frames in latents)
        assert state(curated, "shards/*.parquet") == shards
        assert "as committed" in asked("verify", curated)

    def test_killed_and_run_again_it_is_beside_every_shard_and_no_shard_was_touched(self, curated):
        before = state(curated, "shards/*.parquet"), state(curated, "quarantine/*.parquet")
        plan = (curated / "_songmill" / "plan.json").read_bytes()
        add = ("curate", curated, *PREVIEW, "--set=preview.seconds=1", "--set=resources.workers=1")
        kill_when(lambda: bool(committed_features(curated, "preview")), *add, module=without_workers.__name__)
        early = committed_features(curated, "preview")
        assert 0 < len(early) < 3
        assert (curated / "_songmill" / "plan.json").read_bytes() == plan
        out, _ = without_workers.curated(*add)
        assert f"preview of 5 rows ({5 - 2 * len(early)} worked on now, 0 failed)" in out
        assert early.items() <= committed_features(curated, "preview").items()
        assert heard(curated) == [f"heard {seconds} s of {title}" for title, seconds in SECONDS.items()]
        assert (state(curated, "shards/*.parquet"), state(curated, "quarantine/*.parquet")) == before
        assert "as committed" in asked("verify", curated)
        assert "preview" in {stage["stage"] for stage in inspected(curated)["stages"]}
        assert "features/preview/*.parquet" in (curated / "README.md").read_text()

    def test_the_footer_names_schema_stage_and_shard(self, curated):
        plan = json.loads((curated / "_songmill" / "plan.json").read_bytes())
        for path in curated.glob("features/preview/*.parquet"):
            footer = pq.read_metadata(path).metadata
            assert footer[FOOTER_SCHEMA_VERSION] == b"1"
            assert json.loads(footer[FOOTER_FINGERPRINTS]) == {"preview": plan["columns"]["preview"]["fingerprint"]}
            assert footer[FOOTER_SHARD_DIGEST].decode() == file_digest(curated / "shards" / path.name)

    def test_the_same_again_does_nothing_wherever_the_codec_lies_now(self, curated, codec, tmp_path):
        before = state(curated, "features/*/*.parquet")
        preview = (*PREVIEW, "--set=preview.seconds=1")
        assert "(0 worked on now, 0 failed)" in asked("curate", curated, *preview)
        moved = shutil.copytree(codec, tmp_path / "moved")
        again = asked("curate", curated, "--add", "latents,ssl", f"--set=latents.codec={moved}")
        assert "latents, ssl of 5 rows (0 worked on now, 0 failed)" in again
        assert state(curated, "features/*/*.parquet") == before

    def test_nor_does_the_dataset_s_own_command(self, curated, made_by, codec):
        before = state(curated, "*/**/*.parquet")
        assert "(0 worked on, " in asked(*made_by)
        added = ("--add", "latents,ssl,preview", PREVIEW[2], "--set=preview.seconds=1", f"--set=latents.codec={codec}")
        assert "(0 worked on, " in asked(*made_by, *added)
        assert state(curated, "*/**/*.parquet") == before
        assert "~ column preview: seconds: 1.0 -> 2.0" in asked(*made_by, *added, "--set=preview.seconds=2", code=1)

    def test_made_anew_rows_that_fail_are_null_and_counted(self, curated, songs):
        shards = state(curated, "shards/*.parquet")
        write(songs / "b.flac", noise(3))
        (songs / "c.flac").unlink()
        failing = ("--set=preview.text=anew", "--set=preview.fails_on=d")
        out, _ = without_workers.curated("curate", curated, *PREVIEW, *failing, "--json")
        told = json.loads(out)
        assert (told["features"], told["rows"], told["worked_on"]) == (["preview"], 5, 5)
        failures = {(f["stage"], f["reason"], f["rows"]) for f in told["failures"]}
        assert failures == {("identity", "ChangedFile", 1), ("identity", "Unreadable", 1), ("preview", "Unlucky", 1)}
        assert heard(curated) == ["anew 2.0 s of a", None, None, None, "anew 3.0 s of e"]
        assert state(curated, "shards/*.parquet") == shards
        assert inspected(curated)["rows"] == {"kept": 5, "filtered": 0, "failed": 1, "total": 6}
        assert "as committed" in asked("verify", curated)
        assert "(0 worked on now, 0 failed)" in asked("curate", curated, *PREVIEW, *failing)

    def test_verify_tells_of_rows_in_another_order(self, curated):
        ledger = Ledger(Layout.at(curated)).read()
        before = next(commit for commit in ledger.commits.values() if len(commit.rows) == 2)
        name = next(name for name in before.files if name.startswith("features/"))
        path, record = curated / name, curated / "_songmill" / "commits" / f"{before.unit:06d}.json"
        content, committed = path.read_bytes(), record.read_bytes()
        rows = pq.read_table(path)
        pq.write_table(rows.take([1, 0]), path)
        digest = file_digest(path)
        record.write_text(Commit(**{**before.model_dump(), "files": {**before.files, name: digest}}).model_dump_json())
        assert "its rows differ from those of shards/" in asked("verify", curated, code=1)
        path.write_bytes(content)
        record.write_bytes(committed)

    def test_a_feature_that_the_plan_has_and_a_unit_lacks_must_be_added_too(self, curated):
        lost = next(curated.glob("features/preview/*.parquet"))
        content = lost.read_bytes()
        lost.unlink()
        assert "some units also lack preview; use --add ssl,preview" in asked("curate", curated, "--add", "ssl", code=1)
        lost.write_bytes(content)


class TestRefusals:
    """What cannot be added says why, and changes nothing."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--set=ssl.rate=native",), "is a dataset: name the features to add"),
            (("--add", "ssl", "--update"), "give only --add and --set"),
            (("--add", "key"), "column 'key' is stored in the shards"),
            (("--add", "nonsense"), "no stage named 'nonsense'"),
            (("--add", "ssl", "--set=ssl.rats=native"), "parameters of ssl: model, rate"),
            (("--add", "ssl", "--set=ssl.rate=daily"), "'ssl': parameter rate"),
            (("--add", "latents", "--set=latents.min_frames=9", "--set=latents.codec=x"), "use curate --update"),
            (("--add", "text_embedding"), "reads column 'caption', which no stage writes"),
        ],
    )
    def test_usage(self, curated, arguments, message):
        before = state(curated, "_songmill/**/*.json")
        assert message in asked("curate", curated, *arguments, code=2)
        assert state(curated, "_songmill/**/*.json") == before

    def test_a_stage_that_is_not_what_it_was(self, curated):
        plan = curated / "_songmill" / "plan.json"
        content = plan.read_bytes()
        recorded = json.loads(content)
        recorded["columns"]["audio"]["fingerprint"] = "of an earlier revision"
        plan.write_text(json.dumps(recorded))
        answer = asked("curate", curated, "--add", "ssl", code=1)
        assert "stage 'decode' has changed since the dataset was made" in answer
        plan.write_bytes(content)

    def test_units_of_another_plan(self, curated):
        record = next((curated / "_songmill" / "commits").glob("*.json"))
        content = record.read_bytes()
        record.write_text(json.dumps({**json.loads(content), "plan": "another"}))
        assert "1 units were made with another plan" in asked("curate", curated, "--add", "ssl", code=1)
        record.write_bytes(content)

    def test_no_kept_rows(self, curated, tmp_path):
        out = Path(shutil.copytree(curated, tmp_path / "dataset"))
        for commit in Ledger(Layout.at(out)).read().commits.values():
            if any(name.startswith("shards/") for name in commit.files):
                (out / "_songmill" / "commits" / f"{commit.unit:06d}.json").unlink()
        assert "no kept rows" in asked("curate", out, "--add", "ssl", code=1)
