"""Output of songmill's own loggers while a command runs: on stderr with `-v`, in a file with `--log-file`."""

import logging
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import typer

from pipeline.console.escaping import printable
from pipeline.console.library_output import screen
from pipeline.errors import UsageProblem

_ROOT = logging.getLogger("songmill")  # every logger of ours is below it
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)  # by the number of -v
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def logged(verbose: int, file: Path | None) -> Iterator[None]:
    """Enable the loggers until the end of the block; without options nothing changes.

    Args:
        verbose: 0 shows warnings on stderr, 1 progress, 2 every detail.
        file: every detail is appended to it.

    Raises:
        UsageProblem: the file cannot be written.
    """
    if not verbose and file is None:
        yield
        return
    handlers = [_OnStderr(_LEVELS[min(verbose, len(_LEVELS) - 1)]), *([_in_file(file)] if file else [])]
    level = _ROOT.level
    _ROOT.setLevel(min(handler.level for handler in handlers))
    for handler in handlers:
        handler.setFormatter(_Formatter(_FORMAT))
        _ROOT.addHandler(handler)
    _ROOT.info("songmill %s, Python %s: %s", version("songmill"), platform.python_version(), shlex.join(sys.argv))
    try:
        yield
    except typer.Exit:
        raise
    except Exception:
        _ROOT.debug("the command was ended by an exception", exc_info=True)  # stderr shows it anyway
        raise
    finally:
        _ROOT.setLevel(level)
        for handler in handlers:
            _ROOT.removeHandler(handler)
            handler.close()


class _Formatter(logging.Formatter):
    """Escapes control characters: a log file may be viewed on a terminal too."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _OnStderr(logging.Handler):
    """Looks up `screen()` for every line: during a run, stderr is redirected to a file."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=screen(), flush=True)


def _in_file(path: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UsageProblem(f"--log-file {path}: {error.strerror}; give a file in an existing folder") from error
    handler.setLevel(logging.DEBUG)
    return handler
