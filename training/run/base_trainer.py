"""What all training has in common: steps that are counted, logged, saved, and gone on with where they stopped."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, distributed

from training.run import rounding
from training.run.run_folder import RunFolder, RunProblem

Figures = Mapping[str, float]

_ENVIRONMENT = "computed_with"  # in a checkpoint; those of before it was noted have none


class BaseTrainConfig(BaseModel):
    """Of any run.

    Attributes:
        steps: optimizer steps.
        seed: of weights and whatever a step draws.
        log_every: steps.
        validate_every: steps; 0 is never.
        save_every: steps.
        keep: checkpoints; older ones are deleted.
        threads: of the CPU, in each process; another number rounds otherwise. None is as many as the run has had, and
            at its start those that PyTorch chooses.
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
    """One process of a run; several share it through `torch.distributed`, which the caller sets up.

    A step must depend on the config, the data and its number alone; then a run that is killed and started again takes
    the same steps as one that is not, bit for bit under the same `rounding.environment`.

    Attributes:
        step: the next one, counted from 0.
        folder: of the run.
    """

    def __init__(
        self,
        settings: BaseTrainConfig,
        folder: Path,
        *,
        device: torch.device | str,
        report: Callable[[Figures], None] | None = None,
    ) -> None:
        """Prepare the folder. A subclass makes what it trains after this and then calls `resume`.

        Args:
            settings: what to do, all of it: another run's folder is told by them.
            folder: of the run; one that holds a checkpoint goes on from it.
            device: to compute on.
            report: called with the figures of each logged step, on rank 0.

        Raises:
            RunProblem: the folder belongs to another run.
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
        """Take the step `self.step`; returns its figures, `loss` among them."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The tensors that a checkpoint holds."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Go on with tensors of `state`'s that were read from a checkpoint."""

    def progress(self) -> dict[str, Any]:
        """What else a checkpoint holds, such as the place in the data; plain values."""
        return {}

    def load_progress(self, progress: dict[str, Any]) -> None:  # noqa: B027 - those without such have none to load
        """Go on from there."""

    def validated(self) -> dict[str, float]:
        """Figures on what is held out."""
        return {}

    def after_step(self) -> None:  # noqa: B027 - most do nothing
        """Do what else is due once a step is taken and logged."""

    def train(self) -> None:
        """Take the steps that are left, or those before `stop` is called.

        Raises:
            RunProblem: the loss is not finite any more, or a checkpoint cannot be written.
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
        """Whether something is that is done every so many steps, 0 being never, and at the end."""
        return bool(every) and (self.step % every == 0 or self.step == self._settings.steps)

    def stop(self) -> None:
        """End training after the step at hand, with a checkpoint; a signal handler may call it."""
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
        """Go on from the last checkpoint, if there is one."""
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
        """Stop the run where a loss is not finite, and write down whose it is.

        Raises:
            RunProblem: it is not; the message names the list of tracks.
        """
        if loss.isfinite().all():
            return
        listed = self.folder.root / f"not_finite_step_{self.step:08d}_rank_{self.rank}.txt"
        listed.write_text("".join(f"{track}\n" for track in track_ids))
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
                "%s goes on under other conditions than before (%s): its steps may differ in their last bits from "
                "those that it would have taken",
                self.folder.root,
                "; ".join(changed),
            )

    def _log(self, figures: Figures) -> None:
        if self.rank == 0:
            figures = {"step": self.step, **figures}
            self.folder.record(figures)
            if self._report:
                self._report(figures)
