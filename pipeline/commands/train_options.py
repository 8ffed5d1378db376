"""Options that the commands of `songmill train` share, and their closing message."""

import json
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from pipeline.commands.exit_codes import fail
from pipeline.commands.options import place
from pipeline.console.interrupts import INTERRUPTED


def data(name: str, text: str) -> Any:
    """An option in the help panel `Data`."""
    return typer.Option(name, help=text, rich_help_panel="Data", show_default=False)


def model(name: str, text: str) -> Any:
    """An option in the help panel `Model`."""
    return typer.Option(name, help=text, rich_help_panel="Model", show_default=False)


def training(name: str, text: str) -> Any:
    """An option in the help panel `Training`."""
    return typer.Option(name, help=text, rich_help_panel="Training", show_default=False)


def machine(name: str, text: str) -> Any:
    """An option in the help panel `Machine`."""
    return typer.Option(name, help=text, rich_help_panel="Machine", show_default=False)


Datasets = Annotated[
    list[str] | None,
    typer.Argument(
        parser=place,
        metavar="DATASET...",
        show_default=False,
        help="Datasets: folders, or URLs with s3://, gs:// or az://.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", show_default=False, help="Folder of the run; an existing run is resumed.")
]
Config = Annotated[Path | None, training("--config", "YAML file of settings; the command line takes precedence.")]
Device = Annotated[str, machine("--device", "auto, cpu or cuda.")]
Threads = Annotated[
    int | None,
    machine("--threads", "CPU threads per process. Another number rounds differently; a run keeps its first one."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the last metrics as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


class Run(Protocol):
    """A training run of any kind."""

    @property
    def step(self) -> int:
        """Number of steps taken."""

    @property
    def folder(self) -> Any:
        """The run's `training.run.run_folder.RunFolder`; untyped, since that module imports torch."""


def report_end(run: Run, *, complete: bool, as_json: bool, out: Path, figure: str, digits: int = 4) -> None:
    """Print how a run ended; exits with an error if it was stopped.

    Args:
        run: the run.
        complete: whether it took all its steps, or was stopped.
        as_json: print only the last metrics, as JSON.
        out: the run's folder, as the user gave it.
        figure: format string over the last metrics, such as `, held out {validation/loss:.4f}`; omitted if the metric
            was not measured.
        digits: decimal places of the loss.
    """
    if not complete:
        fail(f"stopped; the checkpoint of step {run.step} is saved, and the same command resumes from it", INTERRUPTED)
    last: dict[str, Any] = next(reversed(run.folder.figures()), {})
    if as_json:
        typer.echo(json.dumps(last, indent=2))
        return
    try:
        extra = figure.format(**last)
    except KeyError:
        extra = ""
    typer.echo(f"{out}: {run.step} steps, loss {last['loss']:.{digits}f}{extra}; see {run.folder.root / 'README.md'}")
