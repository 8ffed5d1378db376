"""`songmill demo`: from a few songs to a new one, with the commands that a user would type."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.output import wide_console


def demo_command(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder for all output.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Train for only a few steps.")] = False,
) -> None:
    """From a few real songs, some of them broken or copies, to a new one: curate, train, sample. Six minutes.

    Prints every command before running it. Run it again to continue where it stopped. The results are checked against
    what is expected (which songs are kept, which are turned away and why, the lyrics found, a song that plays); if they
    differ, the exit code is 1.

    [bold]Example[/]

      songmill models pull small demo && songmill demo --out demo
    """
    from pipeline.demo.input import prepare
    from pipeline.demo.story import QUICK, Demo, Pace
    from pipeline.models.store import ModelStore

    def songmill(arguments: Sequence[str]) -> int:
        return int(context.find_root().command.main(list(arguments), standalone_mode=False) or 0)

    given = prepare(out / "input", ModelStore())
    demo = Demo(out, given, QUICK if quick else Pace())
    raise typer.Exit(demo.tell(songmill, wide_console()))
