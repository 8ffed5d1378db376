"""Kill the driver of `curate` repeatedly: at random moments, and at each of its changes on disk.

    python -m benchmarks.kills --random 100 --injected 60 --seed 0

Works on one dataset of small songs after another; songs are renamed, deleted, copied and replaced between the kills.
Passes run in-process (`tests.support.in_process`), so that a run takes a second; what is killed, by SIGKILL, is a real
process with real files. After every few kills a run completes, and must leave a valid dataset.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.ledger import Ledger
from tests.support.in_process import play_cluster
from tests.support.world import CONTENTS, KINDS, NAMES, World, apply, check, make_contents

_FORK = multiprocessing.get_context("fork")  # everything is imported already, so that kills fall into the work
_STUCK_S = 120.0
_CHANGES = ("replace", "rename", "unlink", "write_bytes", "mkdir")  # of a Path; and every fsync


def main() -> None:
    """Kill the given number of times, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=100, help="kills at random moments")
    parser.add_argument("--injected", type=int, default=60, help="kills at the n-th change on disk")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = kill_often(Path(folder), options.random, options.injected, options.seed)
    print(json.dumps(told, indent=2))


def kill_often(folder: Path, at_random: int, injected: int, seed: int) -> dict[str, Any]:
    """Kill runs over datasets, one after another; fails if a dataset is not valid afterwards.

    Args:
        folder: for all files.
        at_random: number of kills at random moments of a run.
        injected: number of kills in place of a change on disk, at each of the first hundred changes in turn.
        seed: seed of what happens to the songs, and when.

    Returns:
        Kills by where they hit, runs that ended before their kill, completed runs, and datasets.
    """
    rng = random.Random(seed)
    contents = make_contents(folder)
    kills = ["random"] * at_random + ["injected"] * injected
    rng.shuffle(kills)
    where: Counter[str] = Counter()
    datasets = completed = too_late = step = 0
    lasts_s = 1.0
    with pytest.MonkeyPatch.context() as patch:
        ran = play_cluster(patch)
        while kills:
            world = World(folder / f"world {datasets}", contents, ran)
            datasets += 1
            for name in NAMES:
                world.put(name, rng.choice(CONTENTS))
            for _ in range(6):
                before = (
                    world.rows()
                    if (world.dataset / "_songmill/plan.json").exists()
                    and not (world.dataset / "_songmill/moves.json").exists()
                    else {}
                )
                committed: dict[str, str] = {}
                for _ in range(rng.randint(1, 4)):
                    if not kills:
                        break
                    kind = kills.pop()
                    step += kind == "injected"
                    state = _state(world)
                    if kind == "random":
                        died = _run(world, after_s=rng.uniform(0, lasts_s))
                    else:
                        died = _run(world, at_change=step * 37 % 101)
                    if died:
                        where[_where(state, _state(world))] += 1
                    else:
                        too_late += 1
                        kills.append(kind)
                    committed = _unchanged(world, committed)
                    if rng.random() < 0.3:
                        apply(world, ("swap", rng.choice(NAMES), rng.choice(NAMES), 0))
                started = time.monotonic()
                outcome = world.settled()
                lasts_s = min(lasts_s * 2, (time.monotonic() - started) / 2)  # two runs; the first of all imports a lot
                completed += 1
                _unchanged(world, committed)
                check(world, before, outcome, dropped=False)
                print(f"{sum(where.values())} kills, {completed} runs completed", file=sys.stderr)
                if not kills:
                    break
                for _ in range(rng.randint(1, 4)):
                    apply(world, (rng.choice(KINDS), rng.choice(NAMES), rng.choice(NAMES), rng.choice(CONTENTS)))
                if not world.files:
                    world.put("a.wav", 0)
    fell = dict(where.most_common())
    return {"kills": fell, "ended before its kill": too_late, "completed runs": completed, "datasets": datasets}


def _run(world: World, *, after_s: float | None = None, at_change: int | None = None) -> bool:
    """Run in a separate process that is killed; whether it was, or had ended before."""
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_drive, args=(theirs, world.root, world.folder, at_change))
    process.start()
    ours.recv()
    if after_s is not None:
        process.join(after_s)
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGKILL)
    process.join(_STUCK_S)
    assert process.exitcode is not None, "it does not end"
    assert process.exitcode in (0, -signal.SIGKILL), f"it ended by itself with {process.exitcode}"
    return process.exitcode != 0


def _drive(told: Connection, root: Path, folder: str, at_change: int | None) -> None:
    """A driver, which starts once everything is imported."""
    patch = pytest.MonkeyPatch()
    world = World(root, [], play_cluster(patch), folder)
    if at_change is not None:
        _die_at(patch, at_change)
    told.send("begins")
    world.run()


def _die_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """SIGKILL in place of the `step`-th change on disk."""
    left = iter(range(step, -1, -1))

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(*args: Any, **kwargs: Any) -> Any:
            if next(left, -1) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return maybe

    for name in _CHANGES:
        patch.setattr(Path, name, dying(getattr(Path, name)))
    patch.setattr(os, "fsync", dying(os.fsync))


def _state(world: World) -> tuple[int, int, bool, bool]:
    """Parts of the scan, the records' digest, whether renames are in progress, whether there are uncommitted units."""
    root, state = world.dataset, world.dataset / "_songmill"
    records = hash(tuple(path.read_bytes() for path in sorted((state / "commits").glob("*.json"))))
    names = {name for commit in Ledger(world.layout).read().commits.values() for name in commit.files}
    files = [*(root / "shards").glob("*.parquet"), *(root / "quarantine").glob("*.parquet")]
    stray = any(path.relative_to(root).as_posix() not in names for path in files)
    return len([*(state / "scan").glob("*.parquet")]), records, (state / "moves.json").exists(), stray


def _where(before: tuple[int, int, bool, bool], after: tuple[int, int, bool, bool]) -> str:
    if after[2]:
        return "while rows were renamed"
    if after[3]:
        return "between a unit's files and its record"
    if after[1] != before[1]:
        return "among commits"
    return "in the scan, or before the first commit" if after[0] != before[0] else "before anything had changed"


def _unchanged(world: World, committed: dict[str, str]) -> dict[str, str]:
    """Committed files and digests; files committed before must have the same digest, or no longer be committed."""
    now = {name: digest for c in Ledger(world.layout).read().commits.values() for name, digest in c.files.items()}
    changed = [name for name, digest in committed.items() if now.get(name, digest) != digest]
    assert not changed, f"committed files have changed: {changed}"
    return committed | now


if __name__ == "__main__":
    main()
