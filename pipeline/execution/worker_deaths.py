"""Who is to blame when workers die: a row, which is set aside after some tries, or a stage, which ends the run."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.errors import DataProblem
from pipeline.execution.fate import Fate
from pipeline.execution.postmortem import Death

# A song in a thousand may hold bytes that crash a decoder. That three different ones in a row do, and none gets by, is
# the machine's fault: two could be copies or neighbours from the same broken disc, and more would only cost time. Where
# fewer songs reach the stage, all of them have to fail, and they have to be several: of one nobody can tell.
_SONGS = 3
_SEVERAL = 2
_log = logging.getLogger(__name__)


class StageKillsWorkers(DataProblem):
    """A stage kills its worker whatever song it is given; the run stops and leaves these rows undone."""


@dataclass
class Deaths:
    """The deaths of a pass, and what has passed each stage in the whole run.

    Attributes:
        passed: stage -> rows that have come through it alive, measured or failed with an error.
    """

    passed: Counter[str] = field(default_factory=Counter)
    _of_row: Counter[str] = field(default_factory=Counter)
    _set_aside: dict[str, Fate] = field(default_factory=dict)
    _killers: defaultdict[str, list[frozenset[str]]] = field(default_factory=lambda: defaultdict(list))

    def renew(self) -> None:
        """Another pass begins; what has passed a stage in this run still tells that the stage works."""
        self._of_row.clear()
        self._set_aside.clear()
        self._killers.clear()

    def is_open(self, death: Death) -> bool:
        """Whether the stage itself may be to blame: no row has passed it yet."""
        return not self.passed[death.stage] and not death.with_machine

    def count(self, death: Death, max_attempts: int, uris: Mapping[str, str]) -> None:
        """Blame a row that was alone at work, or several of which one must be it, or their stage.

        Args:
            death: of a worker that was at some rows.
            max_attempts: deaths that a row may cause.
            uris: of these rows, for the message.

        Raises:
            StageKillsWorkers: the stage is to blame.
        """
        _log.warning("a worker died: %s, at %s\n%s", death, ", ".join(uris.values()), death.crash)
        suspects = frozenset(death.row_ids)
        if len(suspects) == 1:
            self._of_row.update(suspects)
        if self.is_open(death):
            # Groups that share no row each have a killer of their own.
            killers = [group for group in self._killers[death.stage] if not group & suspects]
            self._killers[death.stage] = [*killers, suspects]
        for row_id in suspects:
            if self._of_row[row_id] >= max_attempts:
                self._set_aside[row_id] = self._fate(row_id, death)
        self._check_stage(death, _SONGS, uris)

    def check_given_up(self, death: Death, row_id: str, uris: Mapping[str, str]) -> None:
        """All other rows have had their turn: if this one would be set aside, it must not have been the stage's fault.

        Raises:
            StageKillsWorkers: it is, for no row has passed and this is not the only one that died there.
        """
        if row_id in self._set_aside:
            self._check_stage(death, _SEVERAL, uris)

    def fates(self, row_ids: Iterable[str]) -> dict[str, Fate]:
        """Those of the rows that have killed workers."""
        dead = self._of_row.keys() & row_ids if self._of_row else ()
        return {row_id: self._set_aside.get(row_id) or Fate(self._of_row[row_id] + 1) for row_id in dead}

    def _fate(self, row_id: str, death: Death) -> Fate:
        deaths = self._of_row[row_id]
        times = "once" if deaths == 1 else f"{deaths} times"
        return Fate(deaths, death.stage, f"{death}; it killed its worker {times}")

    def _check_stage(self, death: Death, enough: int, uris: Mapping[str, str]) -> None:
        songs = len(self._killers[death.stage])
        if self.is_open(death) and songs >= enough:
            raise StageKillsWorkers(
                f"stage {death.stage!r} kills its worker on every song: {songs} of {songs} so far, at last "
                f"{', '.join(uris.values())} by {death}. These rows are left undone; what is committed stands. Run "
                "`songmill doctor`, which checks this installation, then the same command again; or leave the stage "
                "out (--stages), or these songs"
            )
