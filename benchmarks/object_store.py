"""How much of a small object store long songs take, and how much Ray spills to disk.

    python -m benchmarks.object_store --songs 6 --minutes 10 --store-mb 200

The songs' PCM crosses the store twice, as in the full profile: from decode to an operator with a GPU, which the cluster
only says it has, and on to one that waits for a server. Prints a line for RESULTS.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.audio import tone, write
from tests.support.command import ray_cluster, start

_SHARED = Path("/dev/shm")
_STAGES = """stages:
  decode: {}
  placed: {engine: 'tests.support.toy_stages:Placed'}
  asked: {engine: 'tests.support.toy_stages:Asked'}
resources: {gpus: {placed: 0.5}}
"""


def main() -> None:
    """Curate the songs once and watch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=6)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--store-mb", type=int, default=200)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="songmill-") as name:
        folder = Path(name)
        _make_songs(folder / "songs", asked.songs, asked.minutes)
        (folder / "run.yaml").write_text(_STAGES)
        # A short path of its own: the files that Ray spills are counted there.
        with ray_cluster(
            "--num-gpus=1", f"--object-store-memory={asked.store_mb * 2**20}", f"--temp-dir={folder / 'r'}"
        ) as env:
            options = ("--set=audio.max_duration_s=3600", "--set=dedup.threshold=1", "--quiet", "--json")
            command = ("curate", folder / "songs", "--out", folder / "out", "--config", folder / "run.yaml", *options)
            began = time.monotonic()
            run = start(*command, **env)
            in_store, spilled = _watch(run, folder / "r")
            out, err = run.communicate()
        if run.returncode:
            sys.exit(err)
        rows = json.loads(out)["rows"]
        print(
            f"{asked.songs} songs of {asked.minutes:g} min, store of {asked.store_mb} MB: {rows['kept']} kept in "
            f"{time.monotonic() - began:.0f} s; at most {in_store / 1e6:.0f} MB in the store, {spilled / 1e6:.0f} MB "
            "spilled in all"
        )


def _make_songs(folder: Path, songs: int, minutes: float) -> None:
    folder.mkdir()
    for number in range(songs):
        write(folder / f"{number}.flac", tone(200.0 + 10 * number, minutes * 60))


def _watch(run: "subprocess.Popen[str]", session: Path) -> tuple[int, int]:
    """Most bytes that were in shared memory, and bytes of all files that were spilled, until the run ends."""
    before, most, spilled = _shared_bytes(), 0, dict[Path, int]()
    while run.poll() is None:
        most = max(most, _shared_bytes() - before)
        for file in session.rglob("ray_spilled_objects*/*"):
            spilled[file] = max(spilled.get(file, 0), _size(file))
        time.sleep(0.1)
    return most, sum(spilled.values())


def _shared_bytes() -> int:
    found = os.statvfs(_SHARED)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # deleted since
        return 0


if __name__ == "__main__":
    main()
