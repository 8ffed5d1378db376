"""`songmill curate` on three hosts whose cables are pulled and put back, and which join late.

    sudo .venv/bin/python -m benchmarks.three_hosts

The hosts are namespaces of this machine (`benchmarks.hosts`), each with a Ray node of one core; the run is started on
the first. Songs and dataset lie in one folder, which a pulled cable does not cut off. Every case has a cluster and a
dataset of its own. Prints a table for RESULTS.md; takes about fifteen minutes on two cores. Everything is removed at
the end, also after Ctrl-C.
"""

import json
import os
import platform
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import typer

from benchmarks.curate_songs import linked, tracks
from benchmarks.hosts import Host, HostError, clean, switched
from pipeline.models.store import ModelStore

_RAY = Path(sys.executable).with_name("ray")
_ROOT = Path(__file__).parents[1]
_HOSTS = 3
_STAGES = ("quality", "fingerprint", "key", "rhythm", "tags", "events", "sections")
_CUT_S = 30.0
_AFTER = 8  # songs that have been begun in the second pass when something is done to a host
_CASE_S = 600.0  # a run that takes longer is said to hang
_COLUMNS = (
    "the third host",
    "wall s",
    "rows",
    "by host",
    "begun twice",
    "blocks repeated",
    "node lost",
    "its raylet",
    "verify",
    "load",
)
# A node that does not answer is given up after seconds; by default after a minute or so.
_QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class Case:
    """What is done to the third host of a run.

    Attributes:
        name: in the table.
        act: what is done, given all hosts, once the run is under way.
        hosts: that are there from the beginning.
        head: further variables of the head's environment.
        hands_on: whether another operator gets the songs with their PCM, through the object store.
    """

    name: str
    act: Callable[[Sequence[Host]], None]
    hosts: int = _HOSTS
    head: Mapping[str, str] = field(default_factory=dict)
    hands_on: bool = False


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        wall_s: of the command; None if it did not end in time.
        rows: what the command says of them, or why it failed.
        done: host -> songs whose row is from there.
        begun: songs that the second pass began, and how often.
        acted_s: seconds from the command's start to what was done.
        seen: what the run saw of its cluster, by seconds since its start.
        is_clean: whether `songmill verify` is content.
        raylet_s: how long the third host's raylet still ran after what was done; None if it did not end.
        load: of the machine, over the last minute of the run.
    """

    wall_s: float | None
    rows: str
    done: Counter[str]
    begun: Counter[str]
    acted_s: float | None
    seen: list[tuple[float, dict[str, Any]]]
    is_clean: bool
    raylet_s: float | None
    load: float


def _cut_for_a_while(hosts: Sequence[Host]) -> None:
    hosts[-1].pull()
    time.sleep(_CUT_S)
    hosts[-1].plug()


def _cut_for_good(hosts: Sequence[Host]) -> None:
    hosts[-1].pull()


CASES = {
    "undisturbed": Case("undisturbed", lambda _: None),
    "cut": Case(f"cable out for {_CUT_S:g} s", _cut_for_a_while),
    "gone": Case("cable out for good", _cut_for_good),
    "cut-quick": Case(f"cable out for {_CUT_S:g} s, quick health check", _cut_for_a_while, head=_QUICK),
    "gone-quick": Case(
        "cable out for good, quick health check, songs handed on with their PCM",
        _cut_for_good,
        head=_QUICK,
        hands_on=True,
    ),
    "joins": Case("joins", lambda hosts: hosts[-1].join(_RAY, hosts[0]), hosts=2),
}


def main(
    count: Annotated[int, typer.Option("--tracks", min=1, help="Tracks, of up to 40 s each.")] = 24,
    only: Annotated[str, typer.Option(help=f"Comma-separated cases: {', '.join(CASES)}.")] = ",".join(CASES),
    keep: Annotated[Path | None, typer.Option(help="Keep logs and datasets in this folder, which is new.")] = None,
    linger: Annotated[float, typer.Option(help="Seconds to wait after a run for a cut-off raylet to end.")] = 0.0,
    remove: Annotated[bool, typer.Option("--clean", help="Only remove what a killed run has left.")] = False,
) -> None:
    """Run the cases, each with hosts of its own, and print a table. Needs root, for network namespaces."""
    if os.geteuid():
        raise SystemExit("network namespaces need root: run this with sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that hosts are removed
    if remove:
        clean([Host(number, Path("unused"), {}) for number in range(1, _HOSTS + 1)])
        return
    names = only.split(",")
    with _folder(keep) as folder:
        songs = linked(tracks(ModelStore(), count), folder / "songs")
        outcomes = {}
        for name in names:
            _tell(f"{CASES[name].name} ...")
            try:
                outcomes[name] = play(CASES[name], songs, folder / name, linger)
            except HostError as problem:
                raise SystemExit(str(problem)) from problem
            _tell(_row(CASES[name], outcomes[name]))
        print(report(count, [(CASES[name], outcomes[name]) for name in names]))


def play(case: Case, songs: Path, folder: Path, linger_s: float) -> Outcome:
    """One run of the command on hosts of its own."""
    folder.mkdir()
    config, signed, counts = folder / "run.yaml", folder / "signed.jsonl", folder / "counts.jsonl"
    stages: dict[str, dict[str, str]] = {
        "decode": {},
        "signed": {"engine": "benchmarks.watched_curate:Signed", "log": str(signed)},
        **{stage: {} for stage in _STAGES},
    }
    if case.hands_on:
        stages["waiter"] = {"engine": "benchmarks.watched_curate:Waiter"}
    # Tracks by the same machine are much alike; JSON is YAML.
    config.write_text(json.dumps({"stages": stages, "dedup": None, "resources": {"rows_per_shard": 8}}))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, **token, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    with ThreadPoolExecutor() as pool, switched(_HOSTS, folder / "hosts", environment) as hosts:
        for host in hosts[: case.hosts]:
            host.join(_RAY, hosts[0], **(case.head if host is hosts[0] else {}))
        command = [sys.executable, "-m", "benchmarks.watched_curate", "curate", str(songs)]
        arguments = ["--out", str(folder / "dataset"), "--config", str(config)]
        said = folder / "said.log"
        started = time.time()
        with said.open("w") as output:
            run = hosts[0].start(
                [*command, *arguments], output, RAY_ADDRESS=f"{hosts[0].address}:6379", SONGMILL_WATCH=str(counts)
            )
        ended = pool.submit(lambda: (run.wait(), time.time())[1])
        acted_s = None
        if _is_under_way(run, signed, hosts[case.hosts - 1]):
            acted_s = time.time() - started
            case.act(hosts)
        try:
            wall_s = ended.result(max(1.0, started + _CASE_S - time.time())) - started
        except TimeoutError:
            wall_s = None
        load = os.getloadavg()[0]
        raylet_s = _end_of_raylet(hosts[-1], started + (acted_s or 0), linger_s)
    return Outcome(
        wall_s=wall_s,
        rows=_rows_or_problem(said),
        done=_done(folder / "dataset"),
        begun=Counter(line["uri"] for line in _json_lines(signed)),
        acted_s=acted_s,
        seen=[(line.pop("at") - started, line) for line in _json_lines(counts)],
        is_clean=_is_clean(folder / "dataset"),
        raylet_s=raylet_s,
        load=load,
    )


def _is_under_way(run: subprocess.Popen[str], signed: Path, last: Host) -> bool:
    """Wait until the second pass has begun some songs and the last host has one; False if the run ends before."""
    while run.poll() is None:
        begun = [line["host"] for line in _json_lines(signed)]
        if len(begun) >= _AFTER and last.name in begun:
            return True
        time.sleep(0.1)
    return False


def _end_of_raylet(host: Host, since: float, linger_s: float) -> float | None:
    """Seconds after which no raylet runs there any more, perhaps fewer; None if one still does after a while."""
    deadline = time.time() + linger_s
    while host.runs("raylet"):
        if time.time() > deadline:
            return None
        time.sleep(1)
    return time.time() - since


def _rows_or_problem(said: Path) -> str:
    lines = said.read_text().splitlines()
    counted = (found[1] for line in lines if (found := re.search(r": (\d+ rows = .*?) \(", line)))
    return next(counted, lines[-1] if lines else "nothing was said")


def _done(dataset: Path) -> Counter[str]:
    """Host -> rows of the dataset that are from there."""
    parts = [pq.read_table(path, columns=["signed"]) for path in sorted(dataset.glob("shards/*.parquet"))]
    return Counter(value["host"] for part in parts for value in part["signed"].to_pylist())


def _is_clean(dataset: Path) -> bool:
    command = [sys.executable, "-m", "pipeline.cli", "verify", str(dataset)]
    return subprocess.run(command, check=False, capture_output=True, cwd=_ROOT).returncode == 0


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are complete."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def report(tracks: int, outcomes: Sequence[tuple[Case, Outcome]]) -> str:
    """The table for RESULTS.md."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    table = [
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
        *(_row(case, outcome) for case, outcome in outcomes),
    ]
    return f"{date.today()}, {machine}. {tracks} tracks.\n\n" + "\n".join(table)


def _row(case: Case, outcome: Outcome) -> str:
    last = outcome.seen[-1][1] if outcome.seen else {"repeated": "?", "lost": []}
    cells = (
        case.name,
        f"{outcome.wall_s:.0f}" if outcome.wall_s else f"not ended after {_CASE_S:.0f}",
        outcome.rows,
        ", ".join(f"{host} {rows}" for host, rows in sorted(outcome.done.items())),
        sum(times > 1 for times in outcome.begun.values()),
        last["repeated"],
        _losses(outcome),
        "runs" if outcome.raylet_s is None else f"ended within {outcome.raylet_s:.0f} s",
        "clean" if outcome.is_clean else "NOT CLEAN",
        f"{outcome.load:.0f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _losses(outcome: Outcome) -> str:
    """Nodes that the run saw leave, and how long after they were cut off."""
    told, known = [], 0
    for at_s, counts in outcome.seen:
        for name in counts["lost"][known:]:
            told.append(f"{name} after {at_s - (outcome.acted_s or 0):.0f} s")
        known = len(counts["lost"])
    return ", ".join(told) or "none"


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="three-") as folder:
        yield Path(folder)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
