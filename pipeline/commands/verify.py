"""`songmill verify`: checks that a dataset is as it was committed."""

import typer

from pipeline.commands.exit_codes import DATA_PROBLEM
from pipeline.commands.options import AsJson, Dataset
from pipeline.commands.output import print_json
from schemas.dataset import Layout


def verify_command(dataset: Dataset, as_json: AsJson = False) -> None:
    """Check a dataset: digests of all files, schemas, footers, and that every row is counted once.

    [bold]Example[/]

      songmill verify dataset
    """
    from pipeline.dataset.verification import verify_dataset

    problems = verify_dataset(Layout.at(dataset))
    if as_json:
        print_json({"problems": problems})
    else:
        typer.echo("\n".join(problems) if problems else f"{dataset}: all files and rows are as committed")
    raise typer.Exit(DATA_PROBLEM if problems else 0)
