"""The benchmark of curation: its loop measures what the command does, its report says what was measured."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.column_bytes import column_bytes
from benchmarks.curate_loop import Loop, run
from benchmarks.curate_report import Figures, report
from benchmarks.process_tree import Usage, watch
from pipeline.ingest.manifest import read_manifest
from pipeline.models.store import ModelStore
from pipeline.planning.config import build_config
from pipeline.planning.plan import make_dag
from tests.support import without_workers
from tests.support.audio import write
from tests.support.tracks import load

STAGES = ["decode", "quality", "fingerprint", "rhythm", "key", "tags", "sections", "caption"]


@pytest.fixture(scope="module")
def songs(audio: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    for name in ("calm_acoustic_1", "energetic_electronic_2"):
        write(folder / f"{name}.flac", load(audio("demo-music", f"{name}.opus"), seconds=8, start_s=4))
    return folder


@pytest.fixture(scope="module")
def curated(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "dataset"
    without_workers.curated("curate", songs, "--out", out, "--stages", ",".join(STAGES))
    return out


def test_the_loop_makes_the_columns_that_the_command_makes(songs: Path, curated: Path):
    config = build_config(input=str(songs), output=curated, only=STAGES)
    loop, rows = run(make_dag(config, ModelStore()), read_manifest(config.input.path))
    made = {row["uri"]: row for row in pq.read_table(curated / "shards").to_pylist()}
    assert len(rows) == len(made) == 2
    for row in rows:
        stored = made[row["uri"]]
        assert row == {name: stored[name] for name in row}
    assert set(rows[0]) >= {"audio", "quality", "rhythm", "key", "tags", "sections", "caption"}
    assert loop.audio_s == pytest.approx(16, abs=0.1)
    assert set(loop.stage_s) == set(loop.setup_s) == set(STAGES)


def test_columns_share_out_the_bytes_of_a_shard(curated: Path):
    (shard,) = (curated / "shards").glob("*.parquet")
    sizes = column_bytes([shard])
    assert set(sizes) == set(pq.read_schema(shard).names)
    assert 0 < sum(sizes.values()) < shard.stat().st_size
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)


def test_a_command_is_watched_with_the_processes_it_starts():
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    busy = "import time\ntaken = bytearray(200 << 20)\nwhile time.process_time() < 0.8: pass\nprint('done')"
    usage = watch([sys.executable, "-c", grandchild, busy])
    assert usage.said == "done\n"
    assert usage.cpu_s["workers"] > 0.4
    assert usage.peak_bytes > 200 << 20
    with pytest.raises(RuntimeError, match="no such thing"):
        watch([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_warm_figures_are_differences_of_the_two_corpora():
    loop = Loop(50.0, 600.0, {"decode": 0.1}, Counter(decode=40.0), Counter(decode=600.0))
    figures = Figures(
        machine="here",
        cores=2,
        tracks=20,
        kept=20,
        times=4,
        once=Usage(40.0, {"driver": 10.0, "workers": 60.0}, 100 << 20, ""),
        often=Usage(115.0, {"driver": 20.0, "workers": 185.0}, 110 << 20, ""),
        loops={1: (loop, Usage(60.0, {}, 50 << 20, "")), 2: (loop, Usage(60.0, {}, 50 << 20, ""))},
        start_up={"nothing": Usage(5.0, {"driver": 4.0}, 0, "")},
        column_bytes={"audio": 1000},
    )
    said = report(figures)
    assert "| songmill curate, warm | 25.0 | 24.0 | 45 | 90% |" in said
    assert "songmill curate, warm = 2.00**" in said
    assert "| songmill curate, 80 tracks | 110 (+10%) |" in said
    assert "| decode | 40.00 | 15 | 0.10 |" in said
    assert "| nothing | 5.0 | 4.0 | 4.0 | 0.0 | 0.0 |" in said
    assert "| audio | 100 |" in said
