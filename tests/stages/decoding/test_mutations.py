"""Mutated media files through the scan: no worker dies, grows or hangs, and every refusal is a reason in words."""

import builtins
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from pipeline.ingest.identity import identify
from schemas import columns
from stages.base import Track, TrackError
from stages.decode import Decode
from stages.fingerprint import Fingerprint
from stages.quality import Quality
from tests.support.command import environment, queried, start
from tests.support.mutations import mutants
from tests.support.places import ROOT

_GB = 1_000_000_000
_BARE = {name for name in vars(builtins) if isinstance(vars(builtins)[name], type)} | {"ArgumentError", "error"}


def scanned_here(folder: Path, count: int, seed: int) -> tuple[Counter[str], int]:
    """How many files end in which way, and the most memory this process had, in bytes."""
    outcomes: Counter[str] = Counter()
    decode, quality, fingerprint = Decode(), Quality(), Fingerprint()
    kept = pa.array([{"status": "kept"}], columns.VERDICT)
    for path in mutants(folder, count, seed):
        identify(pa.table({"uri": [str(path)], "verdict": kept}))
        try:
            made = decode.run(pa.table({"uri": [str(path)]}))
            types = {"audio": decode.type, **decode.working}
            row = pa.table({name: pa.array(made.pop(name), type) for name, type in types.items()})
            for stage in (quality, fingerprint):
                pa.array([stage.process(Track(row, 0))[stage.column]], stage.type)
            outcomes["measured"] += 1
        except TrackError as error:
            outcomes[type(error).__name__] += 1
    return outcomes, _peak_bytes()


def _peak_bytes() -> int:
    """Of this program alone; `ru_maxrss` has the peak of the process that started it too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def test_mutated_files_through_the_stages(tmp_path: Path) -> None:
    """In a process of its own, whose memory is only theirs; any other error than a `TrackError` ends it."""
    script = "import sys; from pathlib import Path; from tests.stages.decoding.test_mutations import scanned_here; "
    script += "print(*scanned_here(Path(sys.argv[1]), 60, 0), sep='|')"
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    outcomes, peak = done.stdout.split("|")
    assert "measured" in outcomes
    assert "DecodeError" in outcomes
    assert int(peak) < _GB


def curated(folder: Path, dataset: Path) -> tuple[dict[str, int], int]:
    """Rows by verdict of a real run over a folder, and the most memory one of its workers had, in bytes."""
    options = ("--stages", "decode,quality,fingerprint", "--license", "MIT", "--quiet", "--json")
    process = start("curate", folder, "--out", dataset, *options)
    peak = 0
    while process.poll() is None:
        peak = max([peak, *map(_memory, _workers(process.pid))])
        time.sleep(0.2)
    out, err = process.communicate()
    assert process.returncode == 0, f"{out}\n{err}"
    return json.loads(out)["rows"], peak


def require_reasons(dataset: Path) -> Counter[str]:
    """Reasons of a dataset's rows, each of which must say what is wrong with the file, and name it."""
    rows = queried(dataset, "select uri, verdict from quarantine where verdict.status = 'failed'")
    for row in rows:
        assert row["verdict"]["reason"] not in _BARE, row
        assert row["verdict"]["reason"] != "WorkerDied", row
        assert Path(row["uri"]).name in row["verdict"]["message"], row
    return Counter(row["verdict"]["reason"] for row in rows)


def _workers(driver: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(driver).children(recursive=True)
        return [child for child in children if child.name().startswith("ray::")]
    except psutil.Error:
        return []


def _memory(process: psutil.Process) -> int:
    """What is its own, without the object store that it shares."""
    try:
        told = process.memory_info()
        return int(told.rss - told.shared)
    except psutil.Error:
        return 0


@pytest.mark.ray
def test_mutated_files_through_a_run(tmp_path: Path) -> None:
    mutants(tmp_path / "songs", 60, seed=1)

    rows, peak = curated(tmp_path / "songs", tmp_path / "dataset")

    assert rows["total"] == 60 == rows["kept"] + rows["filtered"] + rows["failed"]
    assert rows["failed"] == require_reasons(tmp_path / "dataset").total() > 10
    assert 0 < peak < _GB


@pytest.mark.ray
@pytest.mark.slow
def test_a_thousand_mutated_files_through_a_run(tmp_path: Path) -> None:
    mutants(tmp_path / "songs", 1_000, seed=2)

    rows, peak = curated(tmp_path / "songs", tmp_path / "dataset")

    assert rows["total"] == 1_000 == rows["kept"] + rows["filtered"] + rows["failed"]
    assert rows["failed"] == require_reasons(tmp_path / "dataset").total() > 200
    assert 0 < peak < _GB
