"""Several processes write one dataset in a bucket at once, without a lease; they are killed, and requests fail.

    python -m benchmarks.rivals [--units 300] [--writers 3] [--faults 0.1]

The server is moto's, behind a proxy that lets a share of the requests fail in every way there is. Prints what was done
and whether every unit is there once, whole, and nothing else is. Exits with 1 if not.
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter

from schemas.storage.bucket import BucketStore
from schemas.storage.options import StorageOptions
from schemas.storage.store import Overtaken
from tests.support.faulty_s3 import faulty_s3
from tests.support.s3_server import BUCKET, keys, s3_server

_COMMITS = "_songmill/commits"
_FAULTS = ("500", "503", "reset", "lost", "truncated", "flipped")
_OVERTAKEN = 3
_PATIENCE_S = 1800
_SIZE = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=300)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--faults", type=float, default=0.1, help="share of requests")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        sys.exit(write(arguments.write, arguments.units))
    with s3_server() as server, faulty_s3(server) as proxy:
        place = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        proxy.share, proxy.kinds = arguments.faults, _FAULTS
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        began = time.monotonic()
        ends = play(place, arguments.units, arguments.writers)
        proxy.share = 0.0
        sound = check(place, arguments.units)
        print(f"{time.monotonic() - began:.0f} s, {len(proxy.seen)} requests, {arguments.faults:.0%} of them failing")
        print("; ".join(f"{count} {what}" for what, count in ends.items()))
        print(f"{arguments.units} units: {'each there once, whole, and nothing else' if sound else 'NOT SOUND'}")
        sys.exit(not sound)


def play(place: str, units: int, writers: int) -> Counter[str]:
    """Keep so many writers at work, and kill one now and then, until one of them is through."""
    chance, ends = random.Random(0), Counter[str]()
    command = [sys.executable, "-m", "benchmarks.rivals", "--write", place, "--units", str(units)]
    running: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + _PATIENCE_S
    while not ends["through"] and time.monotonic() < deadline:
        while len(running) < writers:
            running.append(subprocess.Popen(command))
        time.sleep(chance.uniform(0.2, 2))
        if chance.random() < 0.4:
            chance.choice(running).kill()
        for writer in [writer for writer in running if writer.poll() is not None]:
            running.remove(writer)
            ends[{0: "through", _OVERTAKEN: "overtaken", -9: "killed"}.get(writer.returncode, "failed")] += 1
    for writer in running:
        writer.kill()
        writer.wait()
    return ends


def write(place: str, units: int) -> int:
    """Commit the units that are not there, in an order of one's own."""
    store = BucketStore(place, StorageOptions())
    try:
        store._log.acquire()
        store.refresh()
        left = [unit for unit in range(units) if f"{_COMMITS}/{unit:06d}.json" not in store.names(_COMMITS)]
        random.shuffle(left)
        for unit in left:
            content = hashlib.sha256(str(unit).encode()).digest() * (_SIZE // 32)
            store.publish({f"shards/{unit:06d}.bin": content, f"{_COMMITS}/{unit:06d}.json": b"{}"})
    except Overtaken:
        return _OVERTAKEN
    return 0


def check(place: str, units: int) -> bool:
    """Whether a last writer finds every unit, whole, and leaves no object but theirs."""
    assert write(place, units) == 0
    store = BucketStore(place, StorageOptions())
    names = store.names("shards")
    whole = all(
        store.get(name) == hashlib.sha256(str(unit).encode()).digest() * (_SIZE // 32)
        for unit, name in enumerate(names)
    )
    objects = keys(f"{place.removeprefix(f's3://{BUCKET}/')}/shards")
    return whole and len(names) == len(objects) == units == len(store.names(_COMMITS))


if __name__ == "__main__":
    main()
