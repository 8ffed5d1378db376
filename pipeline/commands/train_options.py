"""What the commands of `songmill train` share: options and their panels, how they end."""

import json
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from pipeline.commands.exit_codes import INTERRUPTED, fail


def data(name: str, text: str) -> Any:
    """An option that says what to train on."""
    return typer.Option(name, help=text, rich_help_panel="Data", show_default=False)


def model(name: str, text: str) -> Any:
    """An option that says what to train."""
    return typer.Option(name, help=text, rich_help_panel="Model", show_default=False)


def training(name: str, text: str) -> Any:
    """An option that says how to train."""
    return typer.Option(name, help=text, rich_help_panel="Training", show_default=False)


def machine(name: str, text: str) -> Any:
    """An option that says on what to train."""
    return typer.Option(name, help=text, rich_help_panel="Machine", show_default=False)


Datasets = Annotated[
    list[Path] | None,
    typer.Argument(metavar="DATASET...", show_default=False, help="Folders that songmill curate wrote."),
]
Out = Annotated[
    Path | None, typer.Option("--out", show_default=False, help="Folder of the run; an existing run is resumed.")
]
Config = Annotated[Path | None, training("--config", "YAML of such settings. The command line wins.")]
Device = Annotated[str, machine("--device", "auto, cpu or cuda.")]
Threads = Annotated[
    int | None,
    machine(
        "--threads", "Of the CPU, in each process; another number rounds otherwise. A run keeps what it began with."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the last metrics as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


class Run(Protocol):
    """A training run of any of the commands."""

    @property
    def step(self) -> int:
        """Steps that have been taken."""

    @property
    def folder(self) -> Any:
        """A `training.checkpoints.released_layout.RunFolder`, whose module imports torch."""


def report_end(run: Run, *, complete: bool, as_json: bool, out: Path, figure: str, digits: int = 4) -> None:
    """Say how a run ended.

    Args:
        run: the run.
        complete: whether it took all its steps, or was stopped.
        as_json: print the last figures and nothing else.
        out: its folder, as the user named it.
        figure: of the last figures the one that tells most, as a format string; left out where it was not measured.
        digits: of the loss.
    """
    if not complete:
        fail(f"stopped; the checkpoint of step {run.step} is saved and the same command goes on from it", INTERRUPTED)
    last: dict[str, Any] = next(reversed(run.folder.figures()), {})
    if as_json:
        typer.echo(json.dumps(last, indent=2))
        return
    try:
        extra = figure.format(**last)
    except KeyError:
        extra = ""
    typer.echo(f"{out}: {run.step} steps, loss {last['loss']:.{digits}f}{extra}; see {run.folder.root / 'README.md'}")
