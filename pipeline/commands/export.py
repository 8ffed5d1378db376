"""`songmill export`: files for other programs from a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import Dataset
from pipeline.errors import UsageProblem
from schemas.dataset import Layout
from schemas.lyric_verdicts import CANONICAL, EXTRA, HEARD, SUNG

app = typer.Typer(help="Files for other programs.", no_args_is_help=True)


@app.callback()
def export() -> None:
    """Files for other programs."""


@app.command("lrc", epilog="Example: songmill export lrc dataset --out lyrics")
def lrc_command(
    dataset: Dataset,
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    verdicts: Annotated[str, typer.Option(help="Lines to write, by verdict.")] = f"{CANONICAL},{HEARD},{EXTRA}",
) -> None:
    """Write enhanced LRC with line and word times, one file per song, to check the lyrics while listening."""
    from pipeline.lyrics.lrc import export_lrc  # here because Arrow takes long to import

    wanted = [name.strip() for name in verdicts.split(",")]
    if unknown := sorted({*wanted} - SUNG):
        raise UsageProblem(f"no verdict {', '.join(unknown)}; there are {', '.join(sorted(SUNG))}")
    files = list(export_lrc(Layout.at(dataset), out, wanted))
    print(f"{out}: {len(files)} files")
