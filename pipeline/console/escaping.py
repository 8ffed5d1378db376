"""Keeps data from controlling the terminal: titles, tags, file names and messages may contain any character.

`protect` filters everything that a command writes: `print`, `typer.echo`, logging, warnings, tracebacks, and whatever
rich draws. Only rich's own colours and cursor movements pass unchanged.
"""

import re
import sys
from io import TextIOWrapper
from typing import Any, TextIO

import rich.live
import rich.text
import typer
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.text import Text

_STEERING = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and line feed, DEL, C1
    "\u2028\u2029"  # line and paragraph separator
    "\u202a-\u202e\u2066-\u2069"  # embeddings, overrides and isolates of writing direction
    "\ud800-\udfff"  # lone surrogates: bytes of file names that are not valid text
    "]"
)


_RESET = "\x1b[0m"  # the only thing that Ray's colorama writes when the process ends; harmless


def printable(text: str) -> str:
    r"""A text with every terminal control character written out, as `\u001b`.

    JSON stays equivalent: it has such characters only inside strings, where this is a valid way to write them.
    """
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def protect() -> None:
    """Escape whatever this process prints from now on. May be called more than once.

    Streams that are not terminals are protected too, because most pipes end in one.
    """
    sys.stdout, sys.stderr = protected(sys.stdout), protected(sys.stderr)
    rich.text.strip_control_codes = printable  # type: ignore[assignment]
    rich.live.FileProxy = _LiveProxy  # type: ignore[assignment,misc]


def tell(message: str, style: str) -> None:
    """Print a message on stderr, in a rich style such as "red"."""
    Console(stderr=True, soft_wrap=True).print(Text(message, style), highlight=False)


class ProtectedApp(typer.Typer):
    """A command line whose output is protected, including errors about arguments and tracebacks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line."""
        protect()
        return super().__call__(*args, **kwargs)


class _Printable:
    """A stream that escapes what it writes; rich finds the original stream behind it, because it writes colours."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(text if text == _RESET else printable(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)  # bytes would bypass the filter
        return getattr(self.rich_proxied_file, name)


class _LiveProxy(FileProxy):
    """What rich wraps a stream in while it shows progress; rich's own would interpret printed escapes as colours."""

    def __init__(self, console: Console, stream: TextIO) -> None:
        super().__init__(console, getattr(stream, "rich_proxied_file", stream))

    def write(self, text: str) -> int:
        return super().write(printable(text))


def protected(stream: TextIO) -> TextIO:
    """A stream that escapes text before writing it to `stream`."""
    if stream is None or isinstance(stream, _Printable | FileProxy):
        return stream
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # not every terminal is UTF-8
    return _Printable(stream)  # type: ignore[return-value]
