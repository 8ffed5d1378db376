"""`songmill copy`: a dataset from a folder to a bucket, or back."""

from typing import Annotated

import typer

from pipeline.commands.options import AsJson, Dataset, place
from pipeline.commands.output import print_json


def copy_command(
    source: Dataset,
    target: Annotated[str, typer.Argument(parser=place, help="Where the copy goes: empty, or an earlier copy.")],
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Remove units of the target that the source has no more.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a dataset to another place. What is there already is not copied again, and every file is verified.

    [bold]Examples[/]

      songmill copy dataset s3://bucket/dataset
      songmill copy s3://bucket/dataset dataset --mirror
    """
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import Progress

    from pipeline.edit.copy import copy_dataset
    from schemas.dataset import Layout

    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("units")
        copied = copy_dataset(
            Layout.at(source),
            Layout.at(target),
            mirror=mirror,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print_json(asdict(copied))
        return
    removed = f", {copied.removed} removed" if copied.removed else ""
    typer.echo(
        f"{target}: {copied.units} units copied ({copied.size / 1e6:,.1f} MB), {copied.there} were there{removed}"
    )
