"""The folder of a run: checkpoints that are whole or not there, figures, what the run was asked for."""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import distributed
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from schemas.files import move_durably, write_durably

_PROGRESS = "progress.json"  # written last inside a checkpoint


class RunProblem(Exception):  # noqa: N818 - it says what kind of problem
    """A run that cannot start or go on; the message says what to do."""


class RunFolder:
    """Checkpoints `checkpoints/step-N` and figures `metrics.jsonl` of one run, and what was sampled on the way.

    A checkpoint is written under another name, flushed to the disk and renamed: whatever happens meanwhile, the one
    before it stays valid.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.metrics = root / "metrics.jsonl"
        self.samples = root / "samples"

    def prepare(self, config: dict[str, Any]) -> None:
        """Make the folder, or check that it belongs to the same run. Before its first checkpoint all may change.

        Raises:
            RunProblem: it holds a run with another config.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        stored = self.root / "config.json"
        if stored.exists() and self.steps():
            before, now = _flat(json.loads(stored.read_text())), _flat(config)
            changed = [name for name in now if name.split(".")[0] not in _FREE and before.get(name) != now[name]]
            if changed:
                lines = "\n".join(f"  {name}: {before.get(name)} -> {now[name]}" for name in changed)
                raise RunProblem(
                    f"{self.root} holds a run with other settings:\n{lines}\nGive the same, or another --out."
                )
        write_durably(stored, json.dumps(config, indent=2).encode())

    @property
    def kind(self) -> str:
        """What is trained: `dit`, or what the run's config says.

        Raises:
            RunProblem: the folder is no run.
        """
        stored = self.root / "config.json"
        if not stored.is_file():
            raise RunProblem(f"{self.root} is no run: it has no config.json")
        return str(json.loads(stored.read_text()).get("kind", "dit"))

    def steps(self) -> list[int]:
        """Steps whose checkpoints are complete, rising."""
        found = (path.parent.name for path in self.checkpoints.glob(f"step-*/{_PROGRESS}"))
        return sorted(int(name.removeprefix("step-")) for name in found)

    def chosen(self, step: int | None) -> int:
        """The step whose checkpoint is asked for; None is the last.

        Raises:
            RunProblem: there is none of it.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            asked = "no checkpoint yet" if not steps else f"none of step {step}, only of {', '.join(map(str, steps))}"
            raise RunProblem(f"{self.root} has {asked}")
        return steps[-1] if step is None else step

    def path(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / f"step-{step:08d}"

    def save(self, step: int, tensors: dict[str, Any], progress: dict[str, Any], keep: int) -> None:
        """Write a checkpoint, on every rank of a distributed run together; then delete all but the `keep` newest.

        Raises:
            RunProblem: the disk is full; the checkpoints before are untouched.
        """
        draft = self.checkpoints / f".step-{step:08d}"
        try:
            if _first():
                shutil.rmtree(draft, ignore_errors=True)
            _wait()
            with _quiet():
                dcp.save(tensors, storage_writer=FileSystemWriter(draft, sync_files=True))
            _wait()
            if _first():
                self._publish(draft, step, progress)
                for old in self.steps()[:-keep]:
                    shutil.rmtree(self.path(old))
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise RunProblem(f"cannot write the checkpoint of step {step}: {error}; earlier ones are valid") from error
        _wait()

    def progress(self, step: int) -> dict[str, Any]:
        """What was saved with the tensors of a step."""
        progress: dict[str, Any] = json.loads((self.path(step) / _PROGRESS).read_text())
        return progress

    def load(self, step: int, tensors: dict[str, Any]) -> dict[str, Any]:
        """Fill `tensors` in place; returns the progress that was saved with them."""
        with _quiet():
            dcp.load(tensors, storage_reader=FileSystemReader(self.path(step)))
        return self.progress(step)

    def figures(self) -> list[dict[str, Any]]:
        """Figures of the steps so far."""
        return [json.loads(line) for line in self._recorded()]

    def record(self, figures: dict[str, Any]) -> None:
        """Append figures of a step."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(figures) + "\n")

    def forget_figures_after(self, step: int) -> None:
        """Drop what a killed process recorded beyond the checkpoint that is gone on from."""
        if not self.metrics.exists():
            return
        kept = [line for line in self._recorded() if json.loads(line)["step"] <= step]
        write_durably(self.metrics, "".join(f"{line}\n" for line in kept).encode())

    def _recorded(self) -> list[str]:
        """Whole lines: a full disk breaks off the last one."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        return [line for line in lines if line.endswith("}")]

    def _publish(self, draft: Path, step: int, progress: dict[str, Any]) -> None:
        write_durably(draft / _PROGRESS, json.dumps(progress).encode())
        shutil.rmtree(self.path(step), ignore_errors=True)
        move_durably(draft, self.path(step))


# What a run may change its mind about.
_FREE = {"steps", "log_every", "validate_every", "save_every", "keep", "threads", "samples"}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def _first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def _wait() -> None:
    if distributed.is_initialized():
        distributed.barrier()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remark that a single process is not distributed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
