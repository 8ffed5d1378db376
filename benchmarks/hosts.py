"""Hosts on this machine: namespaces for network, processes and host name, a cable each, one file system for all.

Needs root and `ip`, `unshare` and `nsenter`, which iproute2 and util-linux bring.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_BRIDGE = "smill-switch"
_NETWORK = "10.77.41"
_STORE_BYTES = 200_000_000
_PORT = 6379
_UP_S = 90.0
_TRIES = 3


class HostError(Exception):
    """Hosts cannot be had here, or Ray does not come up on one."""


class Host:
    """A host with an address of its own, whose only cable ends in the switch.

    Attributes:
        name: which it calls itself.
        address: its IP address.
    """

    def __init__(self, number: int, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = f"host{number}"
        self.address = f"{_NETWORK}.{number}"
        self._space, self._cable = f"smill-{number}", f"smill-cable{number}"
        self._folder = folder / self.name
        self._environment = {**environment, "TMPDIR": str(self._folder)}
        self._init: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Plug it in and give it a first process, with which all others of it end."""
        self._folder.mkdir(parents=True)
        _do("ip", "netns", "add", self._space)
        _do("ip", "link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", self._space)
        _do("ip", "link", "set", self._cable, "master", _BRIDGE, "up")
        _do("ip", "-n", self._space, "link", "set", "lo", "up")
        _do("ip", "-n", self._space, "address", "add", f"{self.address}/24", "dev", "eth0")
        _do("ip", "-n", self._space, "link", "set", "eth0", "up")
        _do("ip", "-n", self._space, "route", "add", "default", "dev", "eth0")  # Ray looks for the way to the internet
        spaces = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._init = subprocess.Popen(["ip", "netns", "exec", self._space, *spaces, "sleep", "infinity"])
        deadline = time.monotonic() + 10
        while not self._first_process():
            if time.monotonic() > deadline:
                raise HostError(f"{self.name} does not start")
            time.sleep(0.05)
        _do(*self._inside(), "hostname", self.name)

    def start(self, command: Sequence[str], output: IO[str], **more: str) -> subprocess.Popen[str]:
        """A command on this host.

        Args:
            command: and its arguments.
            output: where its stdout and stderr go.
            more: variables of its environment.
        """
        environment = {**self._environment, **more}
        return subprocess.Popen(
            [*self._inside(), *command], env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
        )

    def join(self, ray: Path, head: "Host", **more: str) -> None:
        """Start Ray here, as the head's node or as the head itself, with one core.

        Raises:
            HostError: it does not come up.
        """
        place = [f"--address={head.address}:{_PORT}"]
        if head is self:
            place = ["--head", f"--port={_PORT}", "--include-dashboard=false"]
        options = [f"--node-ip-address={self.address}", f"--temp-dir={self._folder / 'ray'}", "--num-cpus=1"]
        options += [f"--object-store-memory={_STORE_BYTES}", "--disable-usage-stats"]
        said = self._folder / "ray start.log"
        for _ in range(_TRIES):  # a busy machine may be too slow for Ray's deadlines
            if self._comes_up([str(ray), "start", "--block", *place, *options], said, more):
                return
            self._end([pid for pid in self._pids() if pid != self._first_process()])
        raise HostError(f"Ray does not start on {self.name}: {said.read_text()}")

    def _comes_up(self, command: Sequence[str], said: Path, more: Mapping[str, str]) -> bool:
        with said.open("w") as output:
            node = self.start(command, output, PYTHONUNBUFFERED="1", **more)
        deadline = time.monotonic() + _UP_S
        while time.monotonic() < deadline and node.poll() is None:
            if "Ray runtime started" in said.read_text():
                return True
            time.sleep(0.1)
        return False

    def runs(self, program: str) -> bool:
        """Whether a process of this name runs here."""
        for pid in self._pids():
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == program:
                    return True
        return False

    def pull(self) -> None:
        """Pull the cable at the switch."""
        _do("ip", "link", "set", self._cable, "down")

    def plug(self) -> None:
        """Put the cable back in."""
        _do("ip", "link", "set", self._cable, "up")

    def remove(self) -> None:
        """End all of its processes; nothing of it stays."""
        self._end(self._pids())
        if self._init:
            self._init.kill()
            self._init.wait()
        for command in (("ip", "link", "delete", self._cable), ("ip", "netns", "delete", self._space)):
            subprocess.run(command, check=False, capture_output=True)

    def _pids(self) -> list[str]:
        listed = subprocess.run(["ip", "netns", "pids", self._space], check=False, capture_output=True, text=True)
        return listed.stdout.split()

    def _end(self, pids: Sequence[str]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._first_process()}", "--net", "--pid", "--mount", "--uts"]

    def _first_process(self) -> str:
        """Its process 1, by the number that it has outside; empty before there is one."""
        pid = self._init.pid if self._init else 0
        with suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "sleep":
                return children[0]
        return ""


@contextmanager
def switched(count: int, folder: Path, environment: Mapping[str, str]) -> Iterator[list[Host]]:
    """Hosts on one switch for the length of a block.

    Raises:
        HostError: there are some already, of another run or of one that was killed.
    """
    hosts = [Host(number, folder, environment) for number in range(1, count + 1)]
    if Path("/sys/class/net", _BRIDGE).exists():
        raise HostError(f"there is a {_BRIDGE} already: of another run, or --clean removes what a killed one left")
    try:
        _do("ip", "link", "add", _BRIDGE, "type", "bridge")
        _do("ip", "link", "set", _BRIDGE, "up")
        for host in hosts:
            host.boot()
        yield hosts
    finally:
        clean(hosts)


def clean(hosts: Sequence[Host]) -> None:
    """Remove hosts and the switch, as far as they are there."""
    for host in hosts:
        host.remove()
    subprocess.run(("ip", "link", "delete", _BRIDGE), check=False, capture_output=True)


def _do(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HostError(f"{' '.join(command)}: {getattr(error, 'stderr', '') or error}") from error
