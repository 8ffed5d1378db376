"""`songmill curate` as it is, but what the run sees of its cluster is written down, and so is which host begins what.

SONGMILL_WATCH=counts.jsonl python -m benchmarks.watched_curate curate songs/ --out dataset --config run.yaml
"""

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.columns import stage_struct
from stages import pcm
from stages.base import Params, Stage, Track

_EVERY_S = 0.2


class SignedParams(Params):
    """Parameters of `Signed`: the file in which it signs."""

    log: Path = Path("unset")


class Signed(Stage):
    """Notes, before the other models have a song, that this host begins with it."""

    name = "signed"
    type = stage_struct(pa.field("host", pa.string()))
    reads = {"pcm": pcm.PCM, "uri": pa.string()}
    Params = SignedParams

    def process(self, track: Track) -> dict[str, Any]:
        line = json.dumps({"uri": track["uri"], "host": socket.gethostname()})
        with self.params.log.open("a") as log:  # one short write, so that those of several hosts do not mix
            log.write(line + "\n")
        return self.own(host=socket.gethostname())


class Waiter(Stage):
    """Waits over every song as for a server, in an operator of its own, to which songs go with their PCM."""

    name = "waiter"
    type = stage_struct(pa.field("seconds", pa.float64()))
    reads = {"pcm": pcm.PCM}

    @property
    def concurrency(self) -> int:
        return 3

    def process(self, track: Track) -> dict[str, Any]:
        time.sleep(2.0)
        return self.own(seconds=pcm.duration_s(track["pcm"]))


def main() -> None:
    """Run the command line and watch."""
    from pipeline.cli import app
    from pipeline.curation import curate

    made: list[curate.RunCounts] = []

    class Watched(curate.RunCounts):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            made.append(self)

    curate.RunCounts = Watched  # type: ignore[misc]
    threading.Thread(target=_write, args=(made, Path(os.environ["SONGMILL_WATCH"])), daemon=True).start()
    app()


def _write(made: list[Any], path: Path) -> None:
    """Append the counts whenever they have changed."""
    before: dict[str, Any] = {}
    while True:
        time.sleep(_EVERY_S)
        for counts in made[-1:]:
            now = {
                "nodes": counts.nodes,
                "workers": counts.workers,
                "lost": list(counts.nodes_lost),
                "died": counts.died,
                "repeated": counts.repeated,
                "done": counts.done,
            }
            if now != before:
                with path.open("a") as file:
                    file.write(json.dumps({"at": time.time(), **now}) + "\n")
                before = now


if __name__ == "__main__":
    main()
