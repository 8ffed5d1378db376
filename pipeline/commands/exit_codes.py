"""How a command ends when it cannot do what it was asked for.

Exit code 0 is fine, 1 a data problem, 2 a usage problem, 130 and 143 say that Ctrl-C or SIGTERM ended it.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from pipeline.console.escaping import tell
from pipeline.console.interrupts import exit_code, raised_on_sigterm
from pipeline.errors import DataProblem, UsageProblem, is_mendable, unwritable
from schemas.dataset import NoDataset
from schemas.storage.store import Overtaken, StorageError, StoreBusy

DATA_PROBLEM, USAGE_PROBLEM = 1, 2

_log = logging.getLogger("songmill.cli")


class Commands(TyperGroup):
    """The commands of `songmill`: what a user can mend ends any of them with a sentence, and so does a signal."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with guarded(), raised_on_sigterm():
            return super().invoke(ctx)


@contextmanager
def guarded(interrupted: str = "interrupted") -> Iterator[None]:
    """Turn the errors that users can mend into a message and an exit code.

    Args:
        interrupted: what to say when a signal ends the command.
    """
    try:
        yield
    except UsageProblem as error:
        fail(str(error), USAGE_PROBLEM)
    except (DataProblem, NoDataset, StorageError, StoreBusy, Overtaken) as error:
        fail(str(error), DATA_PROBLEM)
    except KeyboardInterrupt as stop:
        fail(interrupted, exit_code(stop))
    except OSError as error:
        if not is_mendable(error):
            raise
        fail(unwritable(error), DATA_PROBLEM)
    except Exception as error:
        if (why := unreadable(error)) is None:
            raise
        fail(why, DATA_PROBLEM)


def unreadable(error: Exception) -> str | None:
    """Why a bucket cannot be read, if that is what stopped DuckDB: its error then has the traceback of ours as text."""
    duckdb = sys.modules.get("duckdb")  # it takes long to import, and who has not used it has no such error
    if duckdb is None or type(error) is not duckdb.Error:
        return None
    ours = re.search(r"^[\w.]*Error: (.+)$", str(error), re.MULTILINE)
    return ours[1] if ours else str(error)


def fail(message: str, code: int) -> NoReturn:
    """Print an error and exit."""
    _log.debug("exit code %d: %s", code, message)
    tell(f"error: {message}", "red")
    raise typer.Exit(code)
