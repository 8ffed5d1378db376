"""The benchmark of curation as Markdown."""

from dataclasses import dataclass

from benchmarks.curate_loop import Loop
from benchmarks.process_tree import Usage

_ROLES = ("driver", "Ray itself", "workers")
_MIB = 1 << 20


@dataclass(frozen=True)
class Figures:
    """All measurements.

    Attributes:
        machine: date and machine.
        cores: cores available to the command.
        tracks: number of tracks in the small corpus.
        kept: how many of them are kept in the dataset.
        times: how many copies of the small corpus make up the large one.
        once: the command on the small corpus.
        often: the command on the large corpus.
        loops: threads -> the plain loop on the small corpus.
        start_up: description of a minimal input -> the command on it.
        column_bytes: column -> bytes in the shards of the small corpus.
    """

    machine: str
    cores: int
    tracks: int
    kept: int
    times: int
    once: Usage
    often: Usage
    loops: dict[int, tuple[Loop, Usage]]
    start_up: dict[str, Usage]
    column_bytes: dict[str, int]

    @property
    def single(self) -> Loop:
        """The loop on one thread."""
        return self.loops[1][0]

    @property
    def warm_s(self) -> float:
        """Wall time of the command for the small corpus, without start-up."""
        return (self.often.wall_s - self.once.wall_s) / (self.times - 1)

    @property
    def warm_cpu_s(self) -> float:
        """Its CPU seconds."""
        return (self.often.all_cpu_s - self.once.all_cpu_s) / (self.times - 1)

    @property
    def best_loop_s(self) -> float:
        """The loop at its best number of threads."""
        return min(loop.wall_s for loop, _ in self.loops.values())


def report(f: Figures) -> str:
    """The section for RESULTS.md."""
    minutes = f.single.audio_s / 60
    head = f"{f.machine}. {f.tracks} tracks, {minutes:.1f} min, {f.kept} kept; no search for duplicates."
    return "\n\n".join([head, _speed(f), _limits(f), _memory(f), _stages(f), _start_up(f), _bytes(f)])


def _speed(f: Figures) -> str:
    rows = [("songmill curate, warm", f.warm_s, f.warm_cpu_s)]
    rows += [
        (f"plain loop, {threads} thread{'s' * (threads > 1)}, warm", loop.wall_s, None)
        for threads, (loop, _) in f.loops.items()
    ]
    rows += [
        ("songmill curate, all of it", f.once.wall_s, f.once.all_cpu_s),
        (f"songmill curate, {f.times} times the tracks", f.often.wall_s, f.often.all_cpu_s),
    ]
    lines = ["| what | wall s | x real time | CPU s | cores busy |", "|---|---|---|---|---|"]
    for name, wall_s, cpu_s in rows:
        audio_s = f.single.audio_s * (f.times if wall_s == f.often.wall_s else 1)
        busy = f"{cpu_s:.0f} | {cpu_s / wall_s / f.cores:.0%}" if cpu_s else " | "
        lines.append(f"| {name} | {wall_s:.1f} | {audio_s / wall_s:.1f} | {busy} |")
    lines.append(f"\n**plain loop at its best : songmill curate, warm = {f.best_loop_s / f.warm_s:.2f}**")
    return "\n".join(lines)


def _limits(f: Figures) -> str:
    """What accounts for the gap to the ideal ratio: double work, idle cores, cores that slow each other down."""
    twice = f.single.stage_s["decode"]
    stages = sum(f.single.stage_s.values())
    busy, more = f.warm_cpu_s / f.warm_s / f.cores, f.warm_cpu_s / stages
    return (
        f"What limits it: {busy:.0%} of {f.cores} cores are busy while it is warm. The same tracks take "
        f"{f.warm_cpu_s:.1f} s of CPU there and {stages:.1f} s in the stages of the loop on one thread, {more:.2f} "
        f"times as many. The second decode, for the models after the scan, is {twice:.1f} s of that."
        " Not told apart: moving rows, and two cores that share caches and memory."
    )


def _memory(f: Figures) -> str:
    once, often = f.once.peak_bytes, f.often.peak_bytes
    lines = ["| peak memory, all processes (a shared page counts once) | MiB |", "|---|---|"]
    lines += [f"| songmill curate, {f.tracks} tracks | {once / _MIB:.0f} |"]
    lines += [f"| songmill curate, {f.tracks * f.times} tracks | {often / _MIB:.0f} ({often / once - 1:+.0%}) |"]
    lines += [f"| plain loop, {threads} threads | {u.peak_bytes / _MIB:.0f} |" for threads, (_, u) in f.loops.items()]
    return "\n".join(lines)


def _stages(f: Figures) -> str:
    lines = ["| stage alone, one thread | s | x real time | loading s |", "|---|---|---|---|"]
    for name, seconds in sorted(f.single.stage_s.items(), key=lambda item: -item[1]):
        speed = f.single.stage_audio_s[name] / max(seconds, 1e-9)
        lines.append(f"| {name} | {seconds:.2f} | {speed:.0f} | {f.single.setup_s[name]:.2f} |")
    return "\n".join(lines)


def _start_up(f: Figures) -> str:
    lines = [f"| start-up | wall s | CPU s | {' | '.join(_ROLES)} |", "|---" * (len(_ROLES) + 3) + "|"]
    for what, usage in f.start_up.items():
        roles = " | ".join(f"{usage.cpu_s.get(role, 0.0):.1f}" for role in _ROLES)
        lines.append(f"| {what} | {usage.wall_s:.1f} | {usage.all_cpu_s:.1f} | {roles} |")
    return "\n".join(lines)


def _bytes(f: Figures) -> str:
    minutes = f.single.audio_s / 60
    lines = ["| column of the shards | bytes a minute of audio |", "|---|---|"]
    lines += [f"| {name} | {size / minutes:,.0f} |" for name, size in f.column_bytes.items()]
    lines += [f"| all | {sum(f.column_bytes.values()) / minutes:,.0f} |"]
    return "\n".join(lines)
