"""The quarantine: what was turned away and since when, one row in full, and failed rows tried again."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.dataset.ledger import Ledger
from schemas.dataset import Layout
from tests.support import without_workers
from tests.support.audio import write
from tests.support.command import asked
from tests.support.played_dataset import PlayedDataset, scanned
from tests.support.tracks import load


@pytest.fixture
def four_scanned(played_dataset: PlayedDataset) -> PlayedDataset:
    rows = [
        scanned("aaaaaaaa1", "one"),
        scanned("aaaaaaaa2", "two", works=False),
        scanned("aaaaaaab3", "three", works=False),
        scanned("b", "four", loudness=-60, title="[bold]x"),
    ]
    return played_dataset.run(*rows)


class TestLooking:
    """Groups and rows, without a cluster."""

    def test_groups_say_how_many_since_when_and_give_an_example(self, four_scanned):
        failed, filtered = json.loads(asked("quarantine", four_scanned.root, "--json"))
        assert (failed["stage"], failed["reason"], failed["rows"], failed["message"]) == (
            "decode",
            "TruncatedAudio",
            2,
            "cut",
        )
        assert (filtered["status"], filtered["stage"], filtered["reason"]) == (
            "filtered",
            "quality",
            "min_loudness_lufs",
        )
        assert failed["tries"] == 1
        assert failed["first_seen"] == failed["last_seen"]
        assert "TruncatedAudio" in asked("quarantine", four_scanned.root)

    def test_some_groups_alone(self, four_scanned):
        root = four_scanned.root
        assert [g["reason"] for g in json.loads(asked("quarantine", root, "--stage", "quality", "--json"))] == [
            "min_loudness_lufs"
        ]
        assert json.loads(asked("quarantine", root, "list", "--reason", "nothing", "--json")) == []

    def test_one_row_in_full(self, four_scanned):
        root = four_scanned.root
        row = json.loads(asked("quarantine", root, "show", "b", "--json"))
        assert row["verdict"]["message"].startswith("quality.loudness_lufs -60 is below")
        assert row["quality"]["loudness_lufs"] == -60
        said = asked("quarantine", root, "show", "b")
        assert "[bold]x" in said
        assert "quality.loudness_lufs" in said

    def test_a_row_that_is_not_there_or_not_alone_is_told(self, four_scanned):
        root = four_scanned.root
        assert "several rows" in asked("quarantine", root, "show", "aaaaaaa", code=1)
        assert "no row" in asked("quarantine", root, "show", "zzz", code=1)
        assert "name a row" in asked("quarantine", root, "show", code=2)
        assert "did not fail; it is filtered by quality.min_loudness_lufs" in asked(
            "quarantine", root, "retry", "b", code=2
        )
        assert "no row failed at stage 'caption'" in asked("quarantine", root, "retry", "--stage", "caption", code=1)
        assert "has no saved configuration; run the full command again" in asked("quarantine", root, "retry", code=1)


class TestRetry:
    """Through the real command. The tests run in order."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("retry")

    @pytest.fixture(scope="class")
    def two_failed(self, folder: Path, audio) -> Path:
        songs = folder / "songs"
        songs.mkdir()
        for i, name in enumerate(("happy_electronic_1", "calm_acoustic_1", "energetic_electronic_2")):
            write(
                songs / f"{name}.flac", load(audio("demo-music", f"{name}.opus"), seconds=6), metadata={"title": name}
            )
            if i == 0:
                whole = songs / f"{name}.flac"
                shutil.copy(whole, folder / "whole.flac")
                whole.write_bytes(os.urandom(whole.stat().st_size))
        (folder / "down").touch()
        flaky = f"{{engine: 'tests.support.toy_stages:Flaky', while_there: {folder / 'down'}, fails_on: calm}}"
        length = "{engine: 'tests.support.toy_stages:Length'}"
        (folder / "run.yaml").write_text(f"stages: {{decode: {{}}, quality: {{}}, length: {length}, flaky: {flaky}}}\n")
        settings = ("--set=resources.rows_per_shard=1", "--set=audio.min_duration_s=2")
        config = folder / "run.yaml"
        without_workers.curated(
            "curate", songs, "--out", folder / "dataset", "--config", config, "--license", "MIT", *settings
        )
        return folder / "dataset"

    def test_what_failed_is_listed(self, two_failed):
        found = json.loads(asked("quarantine", two_failed, "--json"))
        assert {(group["stage"], group["reason"], group["rows"]) for group in found} == {
            ("decode", "NotAudio", 1),
            ("flaky", "Unlucky", 1),
        }

    def test_a_row_is_tried_again_from_the_stage_that_failed_and_no_other_is_touched(self, two_failed, folder):
        (folder / "down").unlink()
        kept, length = _files(two_failed), _seconds(two_failed)["length"]
        out, _ = without_workers.curated("quarantine", two_failed, "retry", "--stage", "flaky", "--json")
        assert json.loads(out) == {"tried": 1, "failed_now": 1}
        assert kept.items() <= _files(two_failed).items()
        rows = json.loads(asked("inspect", two_failed, "--json", "--sql", "select title, flaky.seconds s from tracks"))
        assert {row["title"]: round(row["s"]) for row in rows} == {"calm_acoustic_1": 6, "energetic_electronic_2": 6}
        assert _seconds(two_failed)["length"] == length  # its column was there, so it did not run
        assert "as committed" in asked("verify", two_failed)

    def test_a_file_that_could_not_be_read_is_read_again(self, two_failed, folder):
        song = folder / "songs" / "happy_electronic_1.flac"
        before = song.stat()
        shutil.copy(folder / "whole.flac", song)
        os.utime(song, ns=(before.st_atime_ns, before.st_mtime_ns))  # as from storage that had failed: nothing changed
        out, _ = without_workers.curated("curate", two_failed, "--json")
        assert json.loads(out)["rows"]["failed"] == 1
        without_workers.curated("quarantine", two_failed, "retry")
        assert json.loads(asked("inspect", two_failed, "--json"))["rows"]["kept"] == 3
        licences = json.loads(asked("inspect", two_failed, "--json", "--sql", "select distinct license from tracks"))
        assert licences == [{"license": "MIT"}]  # the first command's, which the retry was not told
        assert "as committed" in asked("verify", two_failed)


def _files(dataset: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in dataset.glob("shards/*.parquet")}


def _seconds(dataset: Path) -> dict[str, float]:
    """Stage -> seconds that it has run, by the commits."""
    totals: dict[str, float] = {}
    for commit in Ledger(Layout.at(dataset)).read().commits.values():
        for stage, time in commit.timings.items():
            totals[stage] = totals.get(stage, 0) + time.seconds
    return totals
