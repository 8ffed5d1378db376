"""What a user can mend. Commands print the message and exit; anything else is our defect and keeps its traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataProblem(Exception):  # noqa: N818 - it says what kind of problem, the subclasses say which error
    """The input, the dataset, the store or the cluster is not as it has to be."""


class UsageProblem(Exception):  # noqa: N818
    """What was asked for cannot be done as asked."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system say which file or folder they are about; a full disk's do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
