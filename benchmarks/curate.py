"""`songmill curate` with the small profile against a plain loop over the same stage objects, in one run.

    make bench-curate

Prints a section for RESULTS.md; takes about ten minutes on two quiet cores. It measures real tracks of the model store
through the command itself, once and repeated four times; `benchmarks.curate_loop` on the same tracks with one thread
and with one per core; and the command on almost no input. Warm figures are differences between the two corpora, because
start-up costs the same for both.
"""

import json
import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.column_bytes import column_bytes
from benchmarks.curate_loop import Loop
from benchmarks.curate_report import Figures, report
from benchmarks.curate_songs import excerpt, linked, tracks
from benchmarks.process_tree import Usage, watch
from pipeline.models.store import ModelStore

_TIMES = 4


@dataclass(frozen=True)
class _Commands:
    """The commands to run; without deduplication, because tracks occur under several names."""

    root: Path

    def curate(self, songs: Path) -> Usage:
        config = self.root / "run.yaml"
        config.write_text("dedup: null\n")
        out = self.root / f"dataset of {songs.name}"
        return _told(
            f"songmill curate, {songs.name}",
            [sys.executable, "-m", "pipeline.cli", "curate", str(songs), "--out", str(out)],
            ["--config", str(config), "--quiet", "--json"],
        )

    def loop(self, songs: Path, threads: int) -> tuple[Loop, Usage]:
        usage = _told(
            f"plain loop, {threads} threads",
            ["env", f"OMP_NUM_THREADS={threads}", sys.executable, "-m", "benchmarks.curate_loop"],
            [str(songs), f"--threads={threads}"],
        )
        return Loop(**json.loads(usage.said)), usage


def main(count: Annotated[int, typer.Option("--tracks", min=1, help="Tracks, of up to 40 s each.")] = 24) -> None:
    """Measure and print a section for RESULTS.md."""
    cores = len(os.sched_getaffinity(0))
    chosen = tracks(ModelStore(), count)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = _Commands(root)
        start_up = {
            "a song of 2 s, which is turned away": run.curate(excerpt(chosen[0], root / "2 s", 2)),
            "the same again: nothing to do": run.curate(root / "2 s"),
            "a song of 8 s, which is kept": run.curate(excerpt(chosen[0], root / "8 s", 8)),
        }
        once = run.curate(linked(chosen, root / "once"))
        often = run.curate(linked(chosen, root / f"{_TIMES} times", _TIMES))
        loops = {threads: run.loop(root / "once", threads) for threads in sorted({1, cores})}
        figures = Figures(
            machine=_machine(cores),
            cores=cores,
            tracks=len(chosen),
            kept=json.loads(once.said)["rows"]["kept"],
            times=_TIMES,
            once=once,
            often=often,
            loops=loops,
            start_up=start_up,
            column_bytes=column_bytes((root / "dataset of once" / "shards").glob("*.parquet")),
        )
    print(report(figures))


def _told(what: str, command: list[str], arguments: list[str]) -> Usage:
    print(f"{what} ...", file=sys.stderr, flush=True)
    usage = watch([*command, *arguments])
    print(f"{what}: {usage.wall_s:.1f} s, CPU {usage.all_cpu_s:.1f} s", file=sys.stderr, flush=True)
    return usage


def _machine(cores: int) -> str:
    load = os.getloadavg()[0]
    return f"{date.today()}, {platform.machine()}, {cores} cores, Python {platform.python_version()}, load {load:.1f}"


if __name__ == "__main__":
    typer.run(main)
