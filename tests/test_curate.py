"""The guarantees of `songmill curate`, through the real command on real audio."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import psutil
import pytest
from datasets import load_dataset

from pipeline.ledger import file_digest
from tests.audio import noise, silence, tone, write
from tests.command import ROOT, asked, environment, inspected, queried, songmill, start
from tests.tracks import load

Audio = Callable[[str, str], Path]
SIGNAL_STAGES = "decode,quality,fingerprint,key"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What to set to use one cluster for runs with few songs; starting one takes longer than they do."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray = Path(sys.executable).with_name("ray")
    options = ["--head", "--port=0", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    command = [ray, "start", *options]
    told = subprocess.run(command, env=environment(**token), capture_output=True, text=True, cwd=ROOT)
    found = re.search(r"--address='([^']+)'", told.stdout + told.stderr)
    assert found, told.stderr
    yield {"RAY_ADDRESS": found.group(1), **token}
    subprocess.run([ray, "stop", "--force"], env=environment(**token), capture_output=True)


@pytest.fixture(scope="module")
def clips(audio: Audio, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of 6 s from real songs, each its own title."""
    folder = tmp_path_factory.mktemp("clips")
    names = ("happy_electronic_1", "calm_acoustic_1", "energetic_electronic_2", "nostalgic_acoustic_s411")
    for name in names:
        for start_s in (2, 14):
            song = load(audio("demo-music", f"{name}.opus"), seconds=6, start_s=start_s)
            write(folder / f"{name} {start_s}.flac", song, metadata={"title": f"{name} {start_s}"})
    return folder


def curate_clips(clips: Path, out: Path, *more: object) -> tuple[object, ...]:
    """The command: one song a shard, one worker, for clips of 6 s."""
    settings = ("resources.rows_per_shard=1", "resources.replicas=1", "audio.min_duration_s=2")
    return ("curate", clips, "--out", out, *(f"--set={setting}" for setting in settings), *more)


def digests(dataset: Path) -> dict[str, tuple[str, int]]:
    """Committed files with their bytes and time of modification."""
    files = [*dataset.glob("shards/*.parquet"), *dataset.glob("quarantine/*.parquet")]
    return {str(path): (file_digest(path), path.stat().st_mtime_ns) for path in files}


class TestAccounting:
    """Rows in = kept + filtered + failed, on a corpus of everything that goes wrong."""

    @pytest.fixture(scope="class")
    def corpus(self, audio: Audio, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("corpus") / "with späces"
        folder.mkdir()
        song = load(audio("demo-music", "happy_electronic_1.opus"), seconds=20)
        other = load(audio("demo-music", "calm_acoustic_1.opus"), seconds=12)
        write(folder / "song.flac", song)
        write(folder / "夜の歌.m4a", other)
        (folder / "夜の歌.txt").write_bytes(b"")
        shutil.copy(folder / "song.flac", folder / "song again.flac")
        write(folder / "song re-encoded.mp3", song * 0.7, kbps=96)
        whole = write(folder / "whole.mp3", load(audio("demo-music", "nostalgic_acoustic_s411.opus"), seconds=15))
        (folder / "truncated.mp3").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        (folder / "text.wav").write_text("no audio at all\n")
        (folder / "empty.ogg").write_bytes(b"")
        write(folder / "silent.wav", silence(8))
        write(folder / "one second.wav", tone(440, 1))
        return folder

    @pytest.fixture(scope="class")
    def dataset(self, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("dataset") / "accounted"
        songmill("curate", corpus, "--out", out, "--stages", SIGNAL_STAGES, "--license", "CC-BY-4.0")
        return out

    def test_every_row_is_kept_filtered_or_failed(self, corpus: Path, dataset: Path):
        rows = inspected(dataset)["rows"]
        songs = [path for path in corpus.iterdir() if path.suffix != ".txt"]
        assert rows == {"kept": 3, "filtered": 4, "failed": 3, "total": len(songs)}
        assert "as committed" in asked("verify", dataset)

    def test_each_is_turned_away_by_the_right_stage_for_the_right_reason(self, dataset: Path):
        rows = queried(
            dataset, "select uri, verdict.status, verdict.stage, verdict.reason, verdict.message from quarantine"
        )
        verdicts = {Path(row["uri"]).name: (row["status"], row["stage"], row["reason"]) for row in rows}
        copy = next(name for name in verdicts if name in ("song.flac", "song again.flac"))  # the smaller row_id stays
        assert verdicts == {
            copy: ("filtered", "dedup", "exact_duplicate"),
            "song re-encoded.mp3": ("filtered", "dedup", "near_duplicate"),
            "truncated.mp3": ("failed", "decode", "TruncatedAudio"),
            "text.wav": ("failed", "decode", "NotAudio"),
            "empty.ogg": ("failed", "decode", "EmptyFile"),
            "silent.wav": ("filtered", "quality", "max_silent_ratio"),
            "one second.wav": ("filtered", "audio", "min_duration_s"),
        }
        assert all(row["message"] for row in rows)

    def test_duplicates_name_the_lossless_copy_and_the_rejected_keep_their_scores(self, dataset: Path):
        named = queried(
            dataset,
            "select t.uri, q.dedup.similarity, q.quality.loudness_lufs from quarantine q "
            "join tracks t on t.row_id = q.dedup.duplicate_of order by 2",
        )
        assert [Path(row["uri"]).name in ("song.flac", "song again.flac") for row in named] == [True, True]
        assert named[0]["similarity"] < named[1]["similarity"] == 1
        assert all(row["loudness_lufs"] is not None for row in named)

    def test_the_same_command_again_does_nothing(self, corpus: Path, dataset: Path):
        before = digests(dataset)
        said = asked("curate", corpus, "--out", dataset, "--stages", SIGNAL_STAGES, "--license", "CC-BY-4.0")
        assert "0 worked on now" in said
        assert digests(dataset) == before

    def test_others_read_the_shards_as_they_are(self, dataset: Path):
        shards = str(dataset / "shards" / "*.parquet")
        loaded = load_dataset("parquet", data_files=shards, split="train", cache_dir=str(dataset.parent / "cache"))
        names = sorted(Path(uri).name for uri in loaded["uri"])
        assert names[1:] == ["whole.mp3", "夜の歌.m4a"]
        assert set(loaded["license"]) == {"CC-BY-4.0"}
        found = duckdb.sql(
            f"select key.tonic, key.model from read_parquet('{shards}') where key.strength > 0"
        ).fetchall()
        assert len(found) == 3
        assert all("essentia" in model for _, model in found)


class TestKilled:
    """Killed at any point, the same command again finishes: no track twice, none missing, commits untouched."""

    def test_sigkill_of_the_driver_in_the_scan_and_twice_in_the_curation(self, clips, tmp_path, cluster):
        out = tmp_path / "dataset"
        slow = ("--set", "resources.rows_per_scan_part=1", "--config", _slow_config(tmp_path))
        command = curate_clips(clips, out, *slow)
        committed: dict[str, tuple[str, int]] = {}
        for moment in (
            "_songmill/scan/part-*.parquet",
            "_songmill/commits/*.json",
            "_songmill/commits/00000[3-9].json",
        ):
            _kill_when(lambda moment=moment: any(out.glob(moment)), *command, **cluster)
            before, committed = committed, _committed_digests(out)
            assert before.items() <= committed.items()
        assert 0 < len(committed) < 8
        songmill(*command, **cluster)
        assert committed.items() <= digests(out).items()
        assert inspected(out)["rows"] == {"kept": 8, "filtered": 0, "failed": 0, "total": 8}
        rows = queried(
            out, "select count(*) as n, count(distinct row_id) as ids, count(distinct uri) as uris from tracks"
        )
        assert rows == [{"n": 8, "ids": 8, "uris": 8}]
        asked("verify", out)

    def test_a_worker_that_dies_is_replaced_and_the_song_that_kills_it_is_set_aside(self, clips, tmp_path, cluster):
        out = tmp_path / "dataset"
        config = tmp_path / "run.yaml"
        config.write_text(
            "stages:\n  decode: {}\n  killer:\n    engine: tests.toy_stages:Killer\n    always: calm_acoustic_1 2\n"
            f"    once: calm_acoustic_1 14\n    memory: {tmp_path / 'memory'}\n"
        )
        songmill(*curate_clips(clips, out, "--config", config, "--set", "resources.max_attempts=2"), **cluster)
        assert (tmp_path / "memory").exists()
        assert inspected(out)["rows"] == {"kept": 7, "filtered": 0, "failed": 1, "total": 8}
        failed = queried(out, "select title, verdict.reason, verdict.attempts from quarantine")
        assert failed == [{"title": "calm_acoustic_1 2", "reason": "WorkerDied", "attempts": 3}]


class TestPlanChanges:
    """Another plan on the same dataset is refused, or with --update makes anew what changed and nothing else."""

    @pytest.fixture(scope="class")
    def dataset(self, clips, cluster, tmp_path_factory) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("plans")
        config = folder / "run.yaml"
        config.write_text("stages:\n  decode: {}\n  quality: {}\n  length: {engine: 'tests.toy_stages:Length'}\n")
        songmill(*curate_clips(clips, folder / "dataset", "--config", config), **cluster)
        return folder / "dataset", config

    def test_another_plan_is_refused_with_a_diff(self, clips, dataset):
        out, config = dataset
        before = digests(out)
        changed = ("--set", "length.fails_on=nobody", "--set", "quality.min_loudness_lufs=-10")
        err = asked(*curate_clips(clips, out, "--config", config, *changed), code=1)
        assert "column length: fails_on" in err
        assert "gate quality.min_loudness_lufs: -45.0 -> -10.0" in err
        assert digests(out) == before

    def test_update_judges_anew_and_makes_only_what_changed(self, clips, dataset, cluster):
        out, config = dataset
        quietest = queried(out, "select title, quality.loudness_lufs as l from tracks order by 2 limit 1")[0]
        stages_before = {stage["stage"]: stage["rows"] for stage in inspected(out)["stages"]}
        gate = ("--set", f"quality.min_loudness_lufs={quietest['l'] + 0.01}", "--update")
        songmill(*curate_clips(clips, out, "--config", config, *gate), **cluster)
        assert inspected(out)["rows"] == {"kept": 7, "filtered": 1, "failed": 0, "total": 8}
        assert queried(out, "select title, length.seconds as s from quarantine")[0]["title"] == quietest["title"]
        assert stages_before["length"] == 8
        assert not {"decode", "length"} & {stage["stage"] for stage in inspected(out)["stages"]}  # nothing ran again

        failing = ("--set", "length.fails_on=happy_electronic_1 2", "--update")
        songmill(*curate_clips(clips, out, "--config", config, *failing), **cluster)
        assert inspected(out)["rows"] == {"kept": 7, "filtered": 0, "failed": 1, "total": 8}
        failed = queried(out, "select title, verdict.stage, verdict.reason, verdict.message from quarantine")[0]
        assert (failed["title"], failed["stage"], failed["reason"]) == ("happy_electronic_1 2", "length", "Unlucky")
        asked("verify", out)


def test_songs_that_come_later_are_added_and_a_later_copy_never_wins(clips, tmp_path, cluster):
    songs, out = tmp_path / "songs", tmp_path / "dataset"
    songs.mkdir()
    first = sorted(clips.iterdir())[0]
    write(songs / "b lossy.mp3", load(first), kbps=128)
    command = curate_clips(songs, out, "--stages", "decode,quality,fingerprint")
    songmill(*command, **cluster)
    before = digests(out)
    shutil.copy(first, songs / "a better.flac")
    write(songs / "c noise.wav", noise(8))
    songmill(*command, **cluster)
    assert before.items() <= digests(out).items()
    kept = queried(out, "select uri from tracks order by 1")
    assert [Path(row["uri"]).name for row in kept] == ["b lossy.mp3", "c noise.wav"]


def test_a_second_writer_is_turned_away(clips, tmp_path):
    from filelock import FileLock

    out = tmp_path / "dataset"
    (out / "_songmill").mkdir(parents=True)
    with FileLock(out / "_songmill" / "lock"):
        err = asked(*curate_clips(clips, out, "--stages", "decode"), code=1)
    assert "another songmill process" in err


def test_an_unknown_column_is_refused_before_anything_starts(clips, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("stages: {decode: {}, needy: {engine: 'tests.toy_stages:Needy'}}\n")
    err = asked(*curate_clips(clips, tmp_path / "dataset", "--config", config), code=2)
    assert "'needy' reads column 'unobtainium', which no stage writes" in err
    assert not (tmp_path / "dataset").exists()


def _slow_config(folder: Path) -> Path:
    config = folder / "slow.yaml"
    config.write_text("stages: {decode: {}, quality: {}, length: {engine: 'tests.toy_stages:Length', seconds: 0.7}}\n")
    return config


def _committed_digests(dataset: Path) -> dict[str, tuple[str, int]]:
    """Digests of files that have a record; a kill may leave others, which do not count."""
    units = {path.stem for path in dataset.glob("_songmill/commits/*.json")}
    return {path: digest for path, digest in digests(dataset).items() if Path(path).stem.partition("-")[2] in units}


def _kill_when(ready: Callable[[], bool], *command: object, **env: str) -> None:
    process = start(*command, **env)
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    for child in children:
        if child.is_running():
            child.kill()
