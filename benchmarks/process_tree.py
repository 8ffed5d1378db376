"""Resources used by a command and all processes that it starts: wall time, CPU seconds by role, memory."""

import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

_EVERY_S = 0.2
_MEMORY_EVERY_S = 0.6  # the kernel walks every page of a process to tell its share: 10 ms for a large one
_RAY = ("gcs_server", "raylet", "monitor.py", "log_monitor.py", "dashboard.py", "agent.py", "main.py", "Agent")


@dataclass(frozen=True)
class Usage:
    """Resources that a command used.

    Attributes:
        wall_s: seconds from its start to its end.
        cpu_s: CPU seconds, user and system, by role: "driver", "Ray itself", "workers".
        peak_bytes: peak memory of all processes together; shared pages are counted proportionally.
        said: its stdout.
    """

    wall_s: float
    cpu_s: dict[str, float]
    peak_bytes: int
    said: str

    @property
    def all_cpu_s(self) -> float:
        return sum(self.cpu_s.values())


def watch(command: Sequence[str]) -> Usage:
    """Run a command and sample its processes several times a second, their memory less often.

    Raises:
        RuntimeError: it failed; the message is its stderr.
    """
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        cpu: dict[tuple[int, float], float] = {}  # by process and when it began
        role: dict[tuple[int, float], str] = {}
        peak, memory_due = 0, started
        while process.poll() is None:
            memory = 0
            weigh = time.perf_counter() >= memory_due
            for one in _tree(process.pid):
                try:
                    with one.oneshot():
                        key = (one.pid, one.create_time())
                        cpu[key] = sum(one.cpu_times()[:2])
                        role[key] = _role(one, process.pid)
                        memory += _memory(one) if weigh else 0
                except psutil.Error:
                    continue  # it has ended meanwhile
            if weigh:
                peak = max(peak, memory)
                memory_due = time.perf_counter() + _MEMORY_EVERY_S
            time.sleep(_EVERY_S)
        wall_s = time.perf_counter() - started
        said, complained = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {complained}")
    by_role: Counter[str] = Counter()
    for key, seconds in cpu.items():
        by_role[role[key]] += seconds  # type: ignore[assignment]
    return Usage(wall_s, dict(by_role), peak, said)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _memory(process: psutil.Process) -> int:
    """Bytes in memory, counting shared pages proportionally, or in full where the system does not report shares."""
    told = process.memory_full_info()
    return getattr(told, "pss", told.rss)


def _role(process: psutil.Process, root: int) -> str:
    if process.pid == root:
        return "driver"
    title = " ".join(process.cmdline())
    if "default_worker" not in title and any(name in title for name in _RAY):
        return "Ray itself"
    return "workers"
