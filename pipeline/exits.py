"""How a command ends when it cannot do what it was asked for: exit code 0 is fine, 1 data, 2 usage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from pipeline.errors import DataProblem, UsageProblem
from pipeline.terminal import tell

DATA_PROBLEM, USAGE_PROBLEM, INTERRUPTED = 1, 2, 130


@contextmanager
def guarded() -> Iterator[None]:
    """Turns the errors that users can mend into a message and an exit code."""
    try:
        yield
    except UsageProblem as error:
        fail(str(error), USAGE_PROBLEM)
    except DataProblem as error:
        fail(str(error), DATA_PROBLEM)


def fail(message: str, code: int) -> NoReturn:
    """Print an error and exit."""
    tell(f"error: {message}", "red")
    raise typer.Exit(code)
