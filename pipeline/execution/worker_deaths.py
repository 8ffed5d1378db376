"""Attribute worker deaths to a row, which fails after some attempts, or to a stage, which aborts the run."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.errors import DataProblem
from pipeline.execution.fate import Fate
from pipeline.execution.postmortem import Death

# One song in a thousand may crash a decoder. If three different songs crash a stage and none passes it, the machine is
# at fault: two could be copies or from the same damaged disc, and waiting for more would only cost time. If fewer songs
# reach the stage, all of them must crash it, and at least two: one song alone proves nothing.
_SONGS = 3
_SEVERAL = 2
# Machines go for reasons of their own, spot instances by the dozen; that this many go under one song is no accident.
_MACHINES = 10
_log = logging.getLogger(__name__)


class StageKillsWorkers(DataProblem):
    """A stage kills its worker on every song; the run stops, and these rows remain unprocessed."""


@dataclass
class Deaths:
    """The worker deaths of a pass, and the rows that have completed each stage in the whole run.

    Attributes:
        passed: stage -> number of rows that have completed it, successfully or with an error.
    """

    passed: Counter[str] = field(default_factory=Counter)
    _of_row: Counter[str] = field(default_factory=Counter)
    _machines_of_row: Counter[str] = field(default_factory=Counter)
    _set_aside: dict[str, Fate] = field(default_factory=dict)
    _killers: defaultdict[str, list[frozenset[str]]] = field(default_factory=lambda: defaultdict(list))

    def renew(self) -> None:
        """Start another pass; `passed` is kept since it shows that a stage works."""
        self._of_row.clear()
        self._machines_of_row.clear()
        self._set_aside.clear()
        self._killers.clear()

    def is_open(self, death: Death) -> bool:
        """Whether the stage itself may be the cause: no row has completed it yet."""
        return not self.passed[death.stage] and not death.with_machine

    def count(self, death: Death, max_attempts: int, uris: Mapping[str, str]) -> None:
        """Count a death against its only row, or against the stage; of several rows, each is a suspect.

        Args:
            death: the worker's death.
            max_attempts: number of deaths after which a row fails; those of whole machines are not among them.
            uris: row id -> uri of the worker's rows, for the message.

        Raises:
            StageKillsWorkers: the stage is the cause.
        """
        _log.warning("a worker died: %s, at %s\n%s", death, ", ".join(uris.values()), death.crash)
        suspects = frozenset(death.row_ids)
        deaths, enough = (self._machines_of_row, _MACHINES) if death.with_machine else (self._of_row, max_attempts)
        if len(suspects) == 1:
            deaths.update(suspects)
        if self.is_open(death):
            # Groups of suspects without a common row contain different causes.
            killers = [group for group in self._killers[death.stage] if not group & suspects]
            self._killers[death.stage] = [*killers, suspects]
        for row_id in suspects:
            if deaths[row_id] >= enough:
                self._set_aside[row_id] = self._fate(row_id, death)
        self._check_stage(death, _SONGS, uris)

    def check_given_up(self, death: Death, row_id: str, uris: Mapping[str, str]) -> None:
        """Before a row fails, after all others have been tried: check that the stage is not the cause.

        Raises:
            StageKillsWorkers: it is: no row has completed the stage, and workers died in it on several rows.
        """
        if row_id in self._set_aside:
            self._check_stage(death, _SEVERAL, uris)

    def fates(self, row_ids: Iterable[str]) -> dict[str, Fate]:
        """Row id -> fate, of those rows on which workers have died."""
        of_all = self._of_row.keys() | self._machines_of_row.keys()
        dead = of_all & {*row_ids} if of_all else ()
        return {row_id: self._set_aside.get(row_id) or Fate(self._deaths(row_id) + 1) for row_id in dead}

    def _deaths(self, row_id: str) -> int:
        return self._of_row[row_id] + self._machines_of_row[row_id]

    def _fate(self, row_id: str, death: Death) -> Fate:
        deaths = self._deaths(row_id)
        times = "once" if deaths == 1 else f"{deaths} times"
        return Fate(deaths, death.stage, f"{death}; it killed its worker {times}")

    def _check_stage(self, death: Death, enough: int, uris: Mapping[str, str]) -> None:
        songs = len(self._killers[death.stage])
        if self.is_open(death) and songs >= enough:
            raise StageKillsWorkers(
                f"stage {death.stage!r} kills its worker on every song: {songs} of {songs} so far, most recently "
                f"{', '.join(uris.values())}: {death}. These rows remain unprocessed; committed rows are kept. Run "
                "`songmill doctor` to check this installation, then run the same command again; or leave out the "
                "stage (--stages) or these songs"
            )
