"""How commands print: JSON for scripts, tables for people."""

import json
import sys
from typing import Any

import typer
from rich.console import Console


def print_json(value: Any) -> None:
    """Print a value as indented JSON; what JSON does not know, such as a path, as its text."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def wide_console() -> Console:
    """Stdout, wide enough for tables when it goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 160)
