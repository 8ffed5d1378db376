"""The loop that all trainers share: steps, logging, checkpoints and exact resume."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, distributed

from schemas.files import write_durably
from training.run import rounding
from training.run.run_folder import RunFolder, RunProblem

Figures = Mapping[str, float]

_ENVIRONMENT = "computed_with"  # key in a checkpoint; the first versions did not write it


class BaseTrainConfig(BaseModel):
    """Settings that every training run has.

    Attributes:
        steps: optimizer steps in total.
        seed: seed of the initial weights and of all that a step draws.
        log_every: steps between log entries.
        validate_every: steps between validations; 0 never validates.
        save_every: steps between checkpoints.
        keep: number of checkpoints to keep; older ones are deleted.
        threads: CPU threads per process; another number rounds differently. None keeps the number that the run started
            with, which PyTorch chose.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    seed: int = 0
    log_every: int = Field(10, ge=1)
    validate_every: int = Field(1000, ge=0)
    save_every: int = Field(1000, ge=1)
    keep: int = Field(3, ge=1)
    threads: int | None = Field(None, ge=1)


class BaseTrainer(ABC):
    """One process of a run. Several processes share a run through `torch.distributed`, which the caller sets up.

    A step must depend only on the config, the data and its number. Then a run that is killed and restarted takes the
    same steps as an uninterrupted one, bit for bit in the same `rounding.environment`.

    Attributes:
        step: the next step, from 0.
        folder: the run's folder.
        rank: rank of this process.
        ranks: number of processes.
    """

    def __init__(
        self,
        settings: BaseTrainConfig,
        folder: Path,
        *,
        device: torch.device | str,
        report: Callable[[Figures], None] | None = None,
    ) -> None:
        """Prepare the folder. A subclass then builds what it trains, and calls `resume`.

        Args:
            settings: all settings of the run; the folder of a run with other settings is refused.
            folder: the run's folder; if it holds a checkpoint, training resumes from it.
            device: device to compute on.
            report: called with the metrics of each logged step, on rank 0.

        Raises:
            RunProblem: the folder holds a run with other settings.
        """
        self.step = 0
        self.folder = RunFolder(folder)
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0
        self.ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        self._settings = settings
        self._report = report
        self._stopping = False
        if self.rank == 0:
            self.folder.prepare(settings.model_dump(mode="json"))
        rounding.fix_threads(settings.threads, self._environment_before())
        self._environment = rounding.environment(device)

    @abstractmethod
    def take_step(self) -> dict[str, float]:
        """Take the step `self.step` and return its metrics, `loss` among them."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The tensors to store in a checkpoint."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore tensors, keyed as in `state`, that were read from a checkpoint."""

    def progress(self) -> dict[str, Any]:
        """JSON values to store in a checkpoint besides tensors, such as the position in the data."""
        return {}

    def load_progress(self, progress: dict[str, Any]) -> None:  # noqa: B027 - optional
        """Restore what `progress` returned."""

    def validated(self) -> dict[str, float]:
        """Validation metrics; empty without held-out data."""
        return {}

    def after_step(self) -> None:  # noqa: B027 - optional
        """Called after each step, once it is logged."""

    def train(self) -> None:
        """Take the remaining steps, until `stop` is called.

        Raises:
            RunProblem: the loss is not finite, or a checkpoint cannot be written.
        """
        while self.step < self._settings.steps and not self._stopping:
            figures = self.take_step()
            self.step += 1
            if self.due(self._settings.validate_every):
                figures |= self.validated()
            if self.due(self._settings.log_every):
                self._log(figures)
            self.after_step()
            if self.due(self._settings.save_every):
                self.save()
        if self._stopping and self.step not in self.folder.steps():
            self.save()

    def due(self, every: int) -> bool:
        """Whether something done every `every` steps (0: never) and after the last step is due now."""
        return bool(every) and (self.step % every == 0 or self.step == self._settings.steps)

    def stop(self) -> None:
        """End training after the current step, with a checkpoint; safe to call from a signal handler."""
        self._stopping = True

    def save(self) -> None:
        """Write a checkpoint of this step."""
        self.folder.save(
            self.step,
            self.state(),
            {"step": self.step, _ENVIRONMENT: dict(self._environment), **self.progress()},
            self._settings.keep,
        )

    def resume(self) -> None:
        """Restore the last checkpoint, if there is one."""
        steps = self.folder.steps()
        if self.rank == 0:
            self.folder.forget_figures_after(steps[-1] if steps else 0)
        if not steps:
            return
        self._warn_of_changes()
        state = self.state()
        progress = self.folder.load(steps[-1], state)
        self.load_state(state)
        self.load_progress(progress)
        self.step = progress["step"]

    def require_finite(self, loss: Tensor, track_ids: Iterable[str]) -> None:
        """Stop the run if a loss is not finite, and list the tracks of its batch in a file.

        Raises:
            RunProblem: the loss is not finite; the message names the file.
        """
        if loss.isfinite().all():
            return
        listed = self.folder.root / f"not_finite_step_{self.step:08d}_rank_{self.rank}.txt"
        write_durably(listed, "".join(f"{track}\n" for track in track_ids).encode())
        raise RunProblem(
            f"the loss of step {self.step} is not finite; the tracks of its batch are in {listed}. Leave them out with "
            "--where, or lower the learning rate, in another --out"
        )

    def _environment_before(self) -> rounding.Environment | None:
        steps = self.folder.steps()
        return self.folder.progress(steps[-1]).get(_ENVIRONMENT) if steps else None

    def _warn_of_changes(self) -> None:
        changed = rounding.changes(self._environment_before() or {}, self._environment)
        if changed and self.rank == 0:
            logging.getLogger(__name__).warning(
                "%s resumes in another environment than before (%s): its steps may differ in their last bits from "
                "those of an uninterrupted run",
                self.folder.root,
                "; ".join(changed),
            )

    def _log(self, figures: Figures) -> None:
        if self.rank == 0:
            figures = {"step": self.step, **figures}
            self.folder.record(figures)
            if self._report:
                self._report(figures)
