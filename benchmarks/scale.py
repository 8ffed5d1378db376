"""Many synthetic rows in blocks of a thousand through the real DAG, with stages that return recorded results.

    python -m benchmarks.scale [--rows 1000000] [--folder FOLDER]

Runs nine tenths of the manifest, then all of it (the resume), then again (nothing to do), each in a process of its own;
then inspects and queries the result. Prints Markdown for RESULTS.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.stats import connect
from schemas.dataset import Layout

_BLOCK = 1000
_LICENSES = ("CC-BY-4.0", "CC0-1.0", "CC-BY-SA-4.0", None)
_STEPS = (
    "read_manifest",
    "open",
    "read_scan",
    "rows_to_scan",
    "judge_scan",
    "units_to_do",
    "renew_stats",
    "write_card",
)
_QUERIES = {
    "a facet: rows by licence": "select license, count(*) from tracks group by 1",
    "a page: 50 rows by BPM, with a filter": (
        "select row_id, title, rhythm.bpm as bpm from tracks "
        "where vocals.has_vocals and rhythm.bpm between 100 and 140 order by bpm desc, row_id limit 50 offset 5000"
    ),
    "one row by its id": "select * from tracks where row_id = (select max(row_id) from tracks)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to work; default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(arguments.rows, Path(folder))


def measure(rows: int, folder: Path) -> None:
    """Run everything and print it."""
    dataset = folder / "dataset"
    parts = {"first 90 %": rows * 9 // 10, "resume": rows, "again": rows}
    runs = {}
    for name, count in parts.items():
        runs[name] = _run(_manifest(folder / f"{count}.parquet", count), dataset)
        print(f"{name}: {runs[name]['wall_s']:.0f} s", file=sys.stderr, flush=True)
    remembered = _inspect_s(dataset)
    (dataset / "_songmill/stats.json").unlink()
    inspections = {"with the figures of the last run": remembered, "counted anew": _inspect_s(dataset)}
    report(rows, runs, inspections, _query_s(dataset))


def _manifest(path: Path, rows: int) -> Path:
    """Songs that do not exist; no stage opens them."""
    table = {
        "uri": [f"/nowhere/{i % _BLOCK:03d}/{i:07d}.mp3" for i in range(rows)],
        "title": [f"Song {i}" for i in range(rows)],
        "license": [_LICENSES[i % len(_LICENSES)] for i in range(rows)],
    }
    pq.write_table(pa.table(table), path)
    return path


def _run(manifest: Path, dataset: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.scale_run", str(manifest), str(dataset)]
    done = subprocess.run(command, env=_environment(), stdout=subprocess.PIPE, check=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def _inspect_s(dataset: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the command, including imports."""
    before, started = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "pipeline.cli", "inspect", str(dataset)]
    subprocess.run(command, env=_environment(), stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - started, os.times()
    return wall, after.children_user - before.children_user + after.children_system - before.children_system


def _query_s(dataset: Path) -> dict[str, float]:
    connection = connect(Layout.at(dataset))
    seconds = {}
    for name, query in _QUERIES.items():
        started = time.perf_counter()
        connection.execute(query).fetchall()
        seconds[name] = time.perf_counter() - started
    return seconds


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}


def report(
    rows: int,
    runs: dict[str, dict[str, Any]],
    inspections: dict[str, tuple[float, float]],
    queries: dict[str, float],
) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, ", end="")
    print(f"load {psutil.getloadavg()[1]:.1f}, Python {platform.python_version()}; {rows:,} rows.\n")
    print("| | " + " | ".join(runs) + " |\n|---|" + "---|" * len(runs))
    lines = {
        "rows worked on": lambda run: f"{run['worked_on']:,}",
        "wall s": lambda run: f"{run['wall_s']:.0f}",
        "driver's CPU s": lambda run: f"{run['driver_cpu_s']:.0f}",
        "scan, s until its first part": lambda run: _moment(run, "first scan part"),
        "scan, s a block": lambda run: _pace(run, "scan part", run["steps"].get("move_durably")),
        "curation, s until its first commit": lambda run: _moment(run, "first commit"),
        "curation, s a block": lambda run: _pace(run, "commit", run["steps"].get("add")),
        "driver's CPU ms a block while curating": _scheduling,
        "driver's memory at the start, MB": lambda run: f"{run['memory_mb'][0][1]:.0f}",
        "driver's memory at its peak, MB": lambda run: f"{max(mb for _, mb in run['memory_mb']):.0f}",
        "driver's memory at the end, MB": lambda run: f"{run['memory_mb'][-1][1]:.0f}",
        **{f"{step}, s (calls)": lambda run, step=step: _step(run, step) for step in _STEPS},
    }
    for title, cell in lines.items():
        print(f"| {title} | " + " | ".join(cell(run) for run in runs.values()) + " |")
    print("\n| on the result | s |\n|---|---|")
    for how, (wall_s, cpu_s) in inspections.items():
        print(f"| songmill inspect, {how} | {wall_s:.1f} wall, {cpu_s:.1f} CPU |")
    for name, seconds in queries.items():
        print(f"| {name} | {seconds:.2f} |")


def _moment(run: dict[str, Any], name: str) -> str:
    return f"{run['moments'][name]:.0f}" if name in run["moments"] else "-"


def _pace(run: dict[str, Any], name: str, step: dict[str, float] | None) -> str:
    """Seconds from one result to the next, in the steady state."""
    if not step or step["calls"] < 2:
        return "-"
    return f"{(run['moments'][f'last {name}'] - run['moments'][f'first {name}']) / (step['calls'] - 1):.2f}"


def _scheduling(run: dict[str, Any]) -> str:
    """What the driver computes between the first and the last commit: Ray's scheduling, and the commits themselves."""
    calls = run["steps"].get("add", {}).get("calls", 0)
    return f"{1000 * (run['cpu']['last commit'] - run['cpu']['first commit']) / (calls - 1):.0f}" if calls > 1 else "-"


def _step(run: dict[str, Any], step: str) -> str:
    taken = run["steps"].get(step)
    return f"{taken['seconds']:.1f} ({taken['calls']:.0f})" if taken else "-"


if __name__ == "__main__":
    main()
