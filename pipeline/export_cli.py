"""`songmill export`: what other programs read of a dataset."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import DataProblem
from schemas.lyric_verdicts import CANONICAL, EXTRA, HEARD, SUNG

_DATA_PROBLEM, _USAGE_PROBLEM = 1, 2

app = typer.Typer(help="Files for other programs.", no_args_is_help=True)


@app.callback()
def export() -> None:
    """Files for other programs."""


@app.command("lrc", epilog="Example: songmill export lrc dataset --out lyrics")
def lrc_command(
    dataset: Annotated[Path, typer.Argument(help="A curated dataset.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    verdicts: Annotated[str, typer.Option(help="Lines to write, by verdict.")] = f"{CANONICAL},{HEARD},{EXTRA}",
) -> None:
    """Enhanced LRC with line and word times, a file a song: listen, and see whether the lyrics fit."""
    from pipeline.lrc import export_lrc  # here, for Arrow takes long to import

    wanted = [name.strip() for name in verdicts.split(",")]
    if unknown := sorted({*wanted} - SUNG):
        print(f"error: no verdict {', '.join(unknown)}; there are {', '.join(sorted(SUNG))}", file=sys.stderr)
        raise typer.Exit(_USAGE_PROBLEM)
    try:
        files = list(export_lrc(dataset, out, wanted))
    except DataProblem as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(_DATA_PROBLEM) from error
    print(f"{out}: {len(files)} files")
