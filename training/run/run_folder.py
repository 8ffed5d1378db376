"""The folder of a run: its settings, metrics and atomically written checkpoints."""

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
    """A run that cannot start or continue; the message says what to do."""


class RunFolder:
    """One run's `config.json`, checkpoints (`checkpoints/step-N`), `metrics.jsonl` and preview songs (`samples/`).

    A checkpoint is written under a temporary name, flushed to disk and renamed, so that a failure at any time leaves
    the previous one valid.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.metrics = root / "metrics.jsonl"
        self.samples = root / "samples"

    def prepare(self, config: dict[str, Any]) -> None:
        """Create the folder, or check that its run has these settings. Without a checkpoint, any setting may change.

        Raises:
            RunProblem: it holds a run with other settings; the message lists them.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        stored = self.root / "config.json"
        if stored.exists() and self.steps():
            before, now = _flat(json.loads(stored.read_text())), _flat(config)
            changed = [name for name in now if name.split(".")[0] not in _FREE and before.get(name) != now[name]]
            if changed:
                lines = "\n".join(f"  {name}: {before.get(name)} -> {now[name]}" for name in changed)
                raise RunProblem(
                    f"{self.root} holds a run with other settings:\n{lines}\nUse the same settings, or another --out."
                )
        write_durably(stored, json.dumps(config, indent=2).encode())

    @property
    def kind(self) -> str:
        """What the run trains: `dit`, `autoencoder` or `speaker`.

        Raises:
            RunProblem: the folder is not a run.
        """
        stored = self.root / "config.json"
        if not stored.is_file():
            raise RunProblem(f"{self.root} is not a run: it has no config.json")
        return str(json.loads(stored.read_text()).get("kind", "dit"))

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, in ascending order."""
        found = (path.parent.name for path in self.checkpoints.glob(f"step-*/{_PROGRESS}"))
        return sorted(int(name.removeprefix("step-")) for name in found)

    def chosen(self, step: int | None) -> int:
        """The step of the checkpoint to use: the one given, or the last.

        Raises:
            RunProblem: there is no such checkpoint; the message lists those there are.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            asked = "no checkpoint yet" if not steps else f"none of step {step}, only of {', '.join(map(str, steps))}"
            raise RunProblem(f"{self.root} has {asked}")
        return steps[-1] if step is None else step

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.checkpoints / f"step-{step:08d}"

    def save(self, step: int, tensors: dict[str, Any], progress: dict[str, Any], keep: int) -> None:
        """Write a checkpoint, then delete all but the `keep` newest. Collective: every rank must call it.

        Raises:
            RunProblem: it cannot be written, for instance on a full disk; earlier checkpoints stay valid.
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
        """The progress that was saved with a step's tensors."""
        progress: dict[str, Any] = json.loads((self.path(step) / _PROGRESS).read_text())
        return progress

    def load(self, step: int, tensors: dict[str, Any]) -> dict[str, Any]:
        """Load a step's tensors into `tensors`, in place; returns its progress."""
        with _quiet():
            dcp.load(tensors, storage_reader=FileSystemReader(self.path(step)))
        return self.progress(step)

    def figures(self) -> list[dict[str, Any]]:
        """Metrics of all logged steps."""
        return [json.loads(line) for line in self._recorded()]

    def record(self, figures: dict[str, Any]) -> None:
        """Append the metrics of a step."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(figures) + "\n")

    def forget_figures_after(self, step: int) -> None:
        """Drop metrics of steps after the checkpoint that the run resumes from."""
        if not self.metrics.exists():
            return
        kept = [line for line in self._recorded() if json.loads(line)["step"] <= step]
        write_durably(self.metrics, "".join(f"{line}\n" for line in kept).encode())

    def _recorded(self) -> list[str]:
        """Complete lines; a full disk may have cut off the last one."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        return [line for line in lines if line.endswith("}")]

    def _publish(self, draft: Path, step: int, progress: dict[str, Any]) -> None:
        write_durably(draft / _PROGRESS, json.dumps(progress).encode())
        shutil.rmtree(self.path(step), ignore_errors=True)
        move_durably(draft, self.path(step))


# Settings that may change when a run is resumed.
_FREE = {"steps", "log_every", "validate_every", "save_every", "keep", "threads", "samples"}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings -> dotted name -> value."""
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
    """Suppress PyTorch's warning that a single process is not distributed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
