"""What the commands of `songmill train` share: panels of options, and errors that users can mend."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from pipeline.errors import DataProblem, UsageProblem

DATA_PROBLEM, USAGE_PROBLEM, INTERRUPTED = 1, 2, 130


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


@contextmanager
def guarded(interrupted: str) -> Iterator[None]:
    """Turn the errors that users can mend into a message and an exit code.

    Args:
        interrupted: what to say when the user stops the command.
    """
    try:
        yield
    except UsageProblem as error:
        fail(str(error), USAGE_PROBLEM)
    except DataProblem as error:
        fail(str(error), DATA_PROBLEM)
    except KeyboardInterrupt:
        fail(interrupted, INTERRUPTED)


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong and exit."""
    typer.secho(f"error: {message}", fg="red", err=True)
    raise typer.Exit(code)
