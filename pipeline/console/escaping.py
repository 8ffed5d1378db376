"""What songs say never steers a terminal: titles, tags, file names and messages may hold any character.

`protect` stands before everything that a command writes: `print`, `typer.echo`, logging, warnings, tracebacks, and all
that rich draws. Only rich's own colours and cursor movements pass as they are.
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
    "\ud800-\udfff"  # lone surrogates: bytes of file names that are no text
    "]"
)


_RESET = "\x1b[0m"  # all that Ray's colorama writes when the process ends; it does no harm


def printable(text: str) -> str:
    r"""A text in which every character that steers a terminal is written out, as `\u001b`.

    JSON stays the same JSON: it has such characters inside strings only, where this is how they may be written.
    """
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def protect() -> None:
    """Make whatever this process prints from now on printable. It may be called again.

    A stream that is no terminal is protected as well, for most pipes end in one.
    """
    sys.stdout, sys.stderr = protected(sys.stdout), protected(sys.stderr)
    rich.text.strip_control_codes = printable  # type: ignore[assignment]
    rich.live.FileProxy = _LiveProxy  # type: ignore[assignment,misc]


def tell(message: str, style: str) -> None:
    """A message on stderr, in a colour."""
    Console(stderr=True, soft_wrap=True).print(Text(message, style), highlight=False)


class ProtectedApp(typer.Typer):
    """A command line whose output is protected, its errors about arguments and its tracebacks as well."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        protect()
        return super().__call__(*args, **kwargs)


class _Printable:
    """A stream that writes printable text; rich finds the stream itself, for it writes colours."""

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
            raise AttributeError(name)  # bytes would pass unseen
        return getattr(self.rich_proxied_file, name)


class _LiveProxy(FileProxy):
    """What rich puts before a stream while it shows progress; it would take escapes that are printed for colours."""

    def __init__(self, console: Console, stream: TextIO) -> None:
        super().__init__(console, getattr(stream, "rich_proxied_file", stream))

    def write(self, text: str) -> int:
        return super().write(printable(text))


def protected(stream: TextIO) -> TextIO:
    """A stream that writes printable text to this one."""
    if stream is None or isinstance(stream, _Printable | FileProxy):
        return stream
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # not every terminal speaks UTF-8
    return _Printable(stream)  # type: ignore[return-value]
