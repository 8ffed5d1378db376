"""The guarantees of `songmill curate`, through the real command on real audio."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from datasets import load_dataset
from filelock import FileLock

from pipeline.execution.cluster import stderr_on_failure
from schemas.files import file_digest
from tests.support import without_workers
from tests.support.audio import noise, silence, tone, write
from tests.support.command import asked, inspected, kill_when, queried, songmill
from tests.support.tracks import load

Audio = Callable[[str, str], Path]
SIGNAL_STAGES = "decode,quality,fingerprint,key"


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
    settings = ("resources.rows_per_shard=1", "resources.workers=1", "audio.min_duration_s=2")
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
    def accounted(self, corpus: Path, tmp_path_factory: pytest.TempPathFactory, shared_cluster: dict[str, str]) -> Path:
        out = tmp_path_factory.mktemp("dataset") / "accounted"
        command = ("curate", corpus, "--out", out, "--stages", SIGNAL_STAGES, "--license", "CC-BY-4.0")
        said, _ = songmill(*command, **shared_cluster)
        assert "10 rows = 3 kept + 4 filtered + 3 failed (10 worked on, 0 unchanged)" in said
        return out

    def test_every_row_is_kept_filtered_or_failed(self, corpus: Path, accounted: Path):
        rows = inspected(accounted)["rows"]
        songs = [path for path in corpus.iterdir() if path.suffix != ".txt"]
        assert rows == {"kept": 3, "filtered": 4, "failed": 3, "total": len(songs)}
        assert "as committed" in asked("verify", accounted)

    def test_each_is_turned_away_by_the_right_stage_for_the_right_reason(self, accounted: Path):
        rows = queried(
            accounted, "select uri, verdict.status, verdict.stage, verdict.reason, verdict.message from quarantine"
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

    def test_duplicates_name_the_lossless_copy_and_the_rejected_keep_their_scores(self, accounted: Path):
        named = queried(
            accounted,
            "select t.uri, q.dedup.similarity, q.quality.loudness_lufs from quarantine q "
            "join tracks t on t.row_id = q.dedup.duplicate_of order by 2",
        )
        assert [Path(row["uri"]).name in ("song.flac", "song again.flac") for row in named] == [True, True]
        assert named[0]["similarity"] < named[1]["similarity"] == 1
        assert all(row["loudness_lufs"] is not None for row in named)

    def test_the_same_command_again_does_nothing(self, corpus: Path, accounted: Path):
        before = digests(accounted)
        said = asked("curate", corpus, "--out", accounted, "--stages", SIGNAL_STAGES, "--license", "CC-BY-4.0")
        assert "3 kept + 4 filtered + 3 failed (0 worked on, 10 unchanged)" in said
        assert digests(accounted) == before

    def test_others_read_the_shards_as_they_are(self, accounted: Path):
        shards = str(accounted / "shards" / "*.parquet")
        loaded = load_dataset("parquet", data_files=shards, split="train", cache_dir=str(accounted.parent / "cache"))
        names = sorted(Path(uri).name for uri in loaded["uri"])
        assert names[1:] == ["whole.mp3", "夜の歌.m4a"]
        assert set(loaded["license"]) == {"CC-BY-4.0"}
        found = duckdb.sql(
            f"select key.tonic, key.model from read_parquet('{shards}') where key.strength > 0"
        ).fetchall()
        assert len(found) == 3
        assert all("essentia" in model for _, model in found)


class TestTheLifeOfADataset:
    """Killed three times, finished, added to, refused another plan, judged anew, updated. The tests run in order."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("life")

    @pytest.fixture(scope="class")
    def songs(self, clips: Path, folder: Path) -> Path:
        """The clips, one of them only as an MP3 for now."""
        songs = Path(shutil.copytree(clips, folder / "songs"))
        (songs / "calm_acoustic_1 2.flac").unlink()
        lossy = load(clips / "calm_acoustic_1 2.flac")
        write(songs / "calm_acoustic_1 2.mp3", lossy, kbps=128, metadata={"title": "calm_acoustic_1 2"})
        return songs

    @pytest.fixture(scope="class")
    def command(self, songs: Path, folder: Path) -> tuple[object, ...]:
        config = folder / "run.yaml"
        length = "{engine: 'tests.support.toy_stages:Length', seconds: 0.7}"  # time to be killed in
        config.write_text(f"stages: {{decode: {{}}, quality: {{}}, fingerprint: {{}}, length: {length}}}\n")
        return curate_clips(songs, folder / "dataset", "--set=resources.rows_per_scan_part=1", "--config", config)

    @pytest.fixture(scope="class")
    def growing(self, folder: Path) -> Path:
        return folder / "dataset"

    def test_killed_in_the_scan_and_twice_in_the_curation_it_finishes(self, command, growing, shared_cluster):
        """Once while workers are at work, which then end with the driver."""
        committed: dict[str, tuple[str, int]] = {}
        alone = {"module": without_workers.__name__}
        moments = {"scan/part-*.parquet": alone, "commits/*.json": shared_cluster, "commits/00000[3-9].json": alone}
        for moment, how in moments.items():
            kill_when(lambda moment=moment: any(growing.glob(f"_songmill/{moment}")), *command, **how)
            before, committed = committed, _committed_digests(growing)
            assert before.items() <= committed.items()
        assert 0 < len(committed) < 8
        said, _ = without_workers.curated(*command)
        rows_done = sum(path.startswith(str(growing / "shards")) for path in committed)  # a song a shard
        assert f"({8 - rows_done} worked on, {rows_done} unchanged)" in said
        assert committed.items() <= digests(growing).items()
        assert inspected(growing)["rows"] == {"kept": 8, "filtered": 0, "failed": 0, "total": 8}
        counts = "select count(*) as n, count(distinct row_id) as ids, count(distinct uri) as uris from tracks"
        assert queried(growing, counts) == [{"n": 8, "ids": 8, "uris": 8}]
        assert "as committed" in asked("verify", growing)

    def test_later_songs_are_added_and_a_later_copy_never_wins(self, clips, songs, command, growing):
        before = digests(growing)
        shutil.copy(clips / "calm_acoustic_1 2.flac", songs / "a better copy.flac")
        write(songs / "noise.flac", noise(8), metadata={"title": "noise"})
        said, _ = without_workers.curated(*command)
        assert "(2 worked on, 8 unchanged)" in said
        assert before.items() <= digests(growing).items()
        assert inspected(growing)["rows"] == {"kept": 9, "filtered": 1, "failed": 0, "total": 10}
        copy = queried(
            growing,
            "select q.uri, t.uri as kept from quarantine q join tracks t on t.row_id = q.dedup.duplicate_of",
        )
        assert [(Path(c["uri"]).name, Path(c["kept"]).name) for c in copy] == [
            ("a better copy.flac", "calm_acoustic_1 2.mp3")
        ]

    def test_another_plan_is_refused_with_a_diff(self, command, growing):
        before = digests(growing)
        err = asked(*command, "--set=length.fails_on=nobody", "--set=quality.min_loudness_lufs=-10", code=1)
        assert "column length: fails_on" in err
        assert "gate quality.min_loudness_lufs: -45.0 -> -10.0" in err
        assert digests(growing) == before

    def test_update_judges_anew_without_running_a_stage(self, command, growing):
        before = inspected(growing)["stages"]
        said, _ = without_workers.curated(*command, "--set=length.max_seconds=7", "--update", "--json")
        assert {key: json.loads(said)[key] for key in ("worked_on", "updated", "unchanged")} == {
            "worked_on": 0,
            "updated": 1,
            "unchanged": 9,
        }
        assert inspected(growing)["rows"] == {"kept": 8, "filtered": 2, "failed": 0, "total": 10}
        (row,) = queried(growing, "select title, length.seconds as s from quarantine where verdict.stage = 'length'")
        assert row == {"title": "noise", "s": pytest.approx(8, abs=0.01)}
        assert inspected(growing)["stages"] == before

    def test_update_makes_a_changed_column_anew_and_an_error_costs_one_row(self, command, growing):
        said, _ = without_workers.curated(*command, "--set=length.fails_on=happy_electronic_1 2", "--update")
        assert "8 kept + 1 filtered + 1 failed (9 worked on, 1 unchanged)" in said  # a copy reaches no stage
        assert inspected(growing)["rows"] == {"kept": 8, "filtered": 1, "failed": 1, "total": 10}
        (failed,) = queried(growing, "select title, verdict.* from quarantine where verdict.status = 'failed'")
        assert (failed["title"], failed["stage"], failed["reason"]) == ("happy_electronic_1 2", "length", "Unlucky")
        assert "as configured" in failed["message"]
        assert "as committed" in asked("verify", growing)

    def test_a_stage_that_cannot_start_ends_the_run_with_its_message(self, command, growing, folder):
        config = folder / "broken.yaml"
        config.write_text(
            "stages: {decode: {}, quality: {}, fingerprint: {}, broken: {engine: 'tests.support.toy_stages:Broken'}}"
        )
        before = digests(growing)
        _, err = without_workers.curated(*command, "--config", config, "--update", code=1)
        assert "error: stage 'broken' cannot start: no such library" in err
        assert "Traceback" not in err
        assert digests(growing) == before
        last = (*command, "--set=length.fails_on=happy_electronic_1 2")
        assert "(0 worked on, 10 unchanged)" in asked(*last)  # nor does another plan stand now


def test_a_second_writer_is_turned_away(clips, tmp_path):
    out = tmp_path / "dataset"
    (out / "_songmill").mkdir(parents=True)
    with FileLock(out / "_songmill" / "lock"):
        err = asked(*curate_clips(clips, out, "--stages", "decode"), code=1)
    assert "another songmill process" in err


def test_an_unknown_column_is_refused_before_anything_starts(clips, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("stages: {decode: {}, needy: {engine: 'tests.support.toy_stages:Needy'}}\n")
    err = asked(*curate_clips(clips, tmp_path / "dataset", "--config", config), code=2)
    assert "'needy' reads column 'unobtainium', which no stage writes" in err
    assert not (tmp_path / "dataset").exists()


def _committed_digests(dataset: Path) -> dict[str, tuple[str, int]]:
    """Digests of files that have a record; a kill may leave others, which do not count."""
    units = {path.stem for path in dataset.glob("_songmill/commits/*.json")}
    return {path: digest for path, digest in digests(dataset).items() if Path(path).stem.partition("-")[2] in units}


def test_what_ray_says_below_python_is_heard_only_if_it_fails(capfd):
    def start(*, works: bool) -> None:
        with stderr_on_failure():
            os.write(2, b"it says something")
            if not works:
                raise ConnectionError

    start(works=True)
    assert capfd.readouterr().err == ""
    with pytest.raises(ConnectionError):
        start(works=False)
    assert capfd.readouterr().err == "it says something"
