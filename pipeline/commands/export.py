"""`songmill export`: what other programs read of a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UsageProblem
from schemas.lyric_verdicts import CANONICAL, EXTRA, HEARD, SUNG

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
    from pipeline.lyrics.lrc import export_lrc  # here, for Arrow takes long to import

    wanted = [name.strip() for name in verdicts.split(",")]
    if unknown := sorted({*wanted} - SUNG):
        raise UsageProblem(f"no verdict {', '.join(unknown)}; there are {', '.join(sorted(SUNG))}")
    files = list(export_lrc(dataset, out, wanted))
    print(f"{out}: {len(files)} files")
