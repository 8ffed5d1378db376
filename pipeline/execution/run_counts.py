"""What a run counts, in the driver: rows that are through, and the deaths of workers."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

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


@dataclass
class RunCounts:
    """The counts; they outlive the workers, so that they never go back.

    Attributes:
        deaths: of workers.
        status: verdict -> rows that are through in this round.
        audio_s: seconds of audio of these.
        look: what the workers are at just now, who has been longest first.
    """

    deaths: Deaths = field(default_factory=Deaths)
    status: Counter[str] = field(default_factory=Counter)
    audio_s: float = 0.0
    look: Callable[[], list[AtWork]] = list

    def begin_pass(self) -> None:
        """Other stages, perhaps of the same rows."""
        self.deaths.renew()

    def begin_round(self) -> None:
        """All rows that are left begin anew."""
        self.status.clear()
        self.audio_s = 0.0

    def finished(self, report: Report) -> None:
        """A block has passed the last operator."""
        self.status.update(report.status)
        self.audio_s += report.audio_s

    @property
    def done(self) -> int:
        """Rows that are through."""
        return self.status.total()
