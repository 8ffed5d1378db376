"""What a run counts, in the driver: rows that are through, work by stage, workers, nodes and what was lost of them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.execution.operator import Report
from pipeline.execution.worker_deaths import Deaths


@dataclass(frozen=True)
class AtWork:
    """What a worker is at.

    Attributes:
        stage: which stage.
        for_s: for how many seconds.
        uri: the song; named of who has been longest only.
    """

    stage: str
    for_s: float
    uri: str = ""


class Observer(Protocol):
    """Is told by the driver what happens in a run."""

    def event(self, name: str, **facts: Any) -> None:
        """Something has happened, such as `node_lost`."""

    def look(self, counts: "RunCounts") -> None:
        """The counts as they are; about once a second."""


@dataclass
class RunCounts:
    """The counts; they outlive the workers, so that they never go back.

    Attributes:
        deaths: of workers.
        status: verdict -> rows that are through in this round.
        audio_s: seconds of audio of these.
        look: what the workers are at just now, who has been longest first.
        observers: are told of events, and of the counts about once a second.
        title: of the pass.
        through: pass and verdict -> rows that have left the last operator, in the whole run.
        stage_rows: stage -> rows that have come through it, in the whole run.
        stage_s: stage -> seconds that workers have spent in it, in the whole run.
        nodes: of the cluster.
        workers: that are there.
        bytes_in_flight: that blocks are charged with, on all nodes.
        queued: for each operator, blocks that wait for it.
        died: workers, in the whole run.
        nodes_lost: names of nodes that left while the run needed them, in the whole run.
        repeated: blocks that entered again, in the whole run.
        lacking: what the run waits for because no node has it; empty if nothing.
    """

    deaths: Deaths = field(default_factory=Deaths)
    status: Counter[str] = field(default_factory=Counter)
    audio_s: float = 0.0
    look: Callable[[], list[AtWork]] = list
    observers: Sequence[Observer] = ()
    title: str = ""
    through: Counter[tuple[str, ...]] = field(default_factory=Counter)
    stage_rows: Counter[str] = field(default_factory=Counter)
    stage_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    nodes: int = 0
    workers: int = 0
    bytes_in_flight: int = 0
    queued: Sequence[int] = ()
    died: int = 0
    nodes_lost: list[str] = field(default_factory=list)
    repeated: int = 0
    lacking: str = ""

    def event(self, name: str, **facts: Any) -> None:
        """Tell the observers."""
        for observer in self.observers:
            observer.event(name, **facts)

    def publish(self) -> None:
        """Show the counts to the observers."""
        for observer in self.observers:
            observer.look(self)

    def begin_pass(self, title: str) -> None:
        """Other stages, perhaps of the same rows."""
        self.title = title
        self.deaths.renew()

    def begin_round(self) -> None:
        """All rows that are left begin anew."""
        self.status.clear()
        self.audio_s = 0.0

    def passed(self, report: Report) -> None:
        """A block has passed an operator."""
        self.deaths.passed.update(report.passed)
        self.stage_rows.update(report.passed)
        for stage, seconds in report.seconds.items():
            self.stage_s[stage] += seconds

    def finished(self, report: Report) -> None:
        """A block has passed the last operator."""
        self.status.update(report.status)
        self.audio_s += report.audio_s
        for status, rows in report.status.items():
            self.through[self.title, status] += rows

    @property
    def done(self) -> int:
        """Rows that are through."""
        return self.status.total()

    def facts(self) -> dict[str, Any]:
        """The counts as a record shows them."""
        return {
            "pass": self.title,
            "rows": {status: self.status[status] for status in sorted(self.status)},
            "audio_s": round(self.audio_s, 1),
            "nodes": self.nodes,
            "workers": self.workers,
            "queued": list(self.queued),
            "bytes_in_flight": self.bytes_in_flight,
            "worker_deaths": self.died,
            "nodes_lost": len(self.nodes_lost),
            "repeated_blocks": self.repeated,
        }
