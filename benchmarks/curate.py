"""Throughput of `songmill curate` with the small profile: one worker against one a core, in one run.

    python -m benchmarks.curate

Prints Markdown for RESULTS.md. Starting Ray and loading the models is part of the wall time, as users see it; the
seconds in the stages are not.
"""

import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import build_config
from pipeline.curate import curate
from pipeline.models.store import ModelStore
from pipeline.stats import Stats


@dataclass(frozen=True)
class Run:
    replicas: int
    wall_s: float
    stats: Stats

    @property
    def audio_s(self) -> float:
        return self.stats.hours["kept"] * 3600

    @property
    def busy_s(self) -> float:
        """Seconds that workers spent in stages, the longer of what two of them share."""
        return sum(stage.seconds for stage in self.stats.stages) / self.replicas


def main() -> None:
    store = ModelStore()
    songs = [store.pull(name).path for name in ("demo-music", "demo-songs")]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "songs").mkdir()
        for path in (file for song in songs for file in song.iterdir() if file.suffix in (".opus", ".mp3")):
            (root / "songs" / path.name).symlink_to(path)
        runs = [run(root, replicas, store) for replicas in (1, len(os.sched_getaffinity(0)))]
    report(runs)


def run(root: Path, replicas: int, store: ModelStore) -> Run:
    overrides = [f"resources.replicas={replicas}", "resources.rows_per_shard=4"]
    config = build_config(input=str(root / "songs"), output=root / f"dataset-{replicas}", overrides=overrides)
    started = time.perf_counter()
    outcome = curate(config, store, progress=True)
    return Run(replicas, time.perf_counter() - started, outcome.stats)


def report(runs: list[Run]) -> None:
    cores = len(os.sched_getaffinity(0))
    kept = runs[0].stats.rows["kept"]
    print(f"{platform.processor() or platform.machine()}, {cores} cores, Python {platform.python_version()}; ", end="")
    print(f"{kept} songs, {runs[0].audio_s / 60:.1f} min\n")
    print("| workers | wall s | x real time | s in stages, per worker | x real time in stages |\n|---|---|---|---|---|")
    for r in runs:
        speeds = f"{r.audio_s / r.wall_s:.1f} | {r.busy_s:.0f} | {r.audio_s / r.busy_s:.1f}"
        print(f"| {r.replicas} | {r.wall_s:.0f} | {speeds} |")
    print(f"\nwall, {runs[0].replicas} worker : {runs[-1].replicas} workers = {runs[0].wall_s / runs[-1].wall_s:.2f}\n")
    print("| stage | " + " | ".join(f"x real time, {r.replicas} worker(s)" for r in runs) + " |")
    print("|---|" + "---|" * len(runs))
    for stages in zip(*(sorted(r.stats.stages, key=lambda s: s.stage) for r in runs), strict=True):
        print(f"| {stages[0].stage} | " + " | ".join(f"{stage.speed:.1f}" for stage in stages) + " |")


if __name__ == "__main__":
    main()
