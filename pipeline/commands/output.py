"""Output of commands: JSON for scripts, tables for people."""

import json
import sys
from typing import Any

import typer
from rich.console import Console


def print_json(value: Any) -> None:
    """Print a value as indented JSON; types that JSON lacks, such as paths, are printed as text."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def wide_console() -> Console:
    """A console on stdout, wide enough for tables when it goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 160)
