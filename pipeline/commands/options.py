"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UsageProblem
from schemas.dataset import Layout


def place(text: str) -> str:
    """Where a dataset is, as messages name it: a path, or the URL of a bucket.

    Raises:
        UsageProblem: it is another URL.
    """
    try:
        return Layout.at(text).url
    except ValueError as error:
        raise UsageProblem(str(error)) from error


Source = Annotated[str | None, typer.Argument(help="Folder, glob or manifest (.jsonl .csv .parquet); local or a URI.")]
Out = Annotated[
    str | None,
    typer.Option(
        "--out", parser=place, metavar="PLACE", help="Dataset: a folder, or a URL with s3://, gs:// or az://."
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML with any of input, output, stages, gates, ...")]
Profile = Annotated[str | None, typer.Option("--profile", help="small (two CPU cores) or full (GPUs).")]
Lyrics = Annotated[
    Path | None, typer.Option("--lyrics", help="Lyric library: Parquet with id, title, artist, text, ...")
]
Only = Annotated[str, typer.Option("--stages", help="Comma-separated stages to run instead of the profile's.")]
Add = Annotated[str, typer.Option("--add", help="Comma-separated stages to add, such as latents,ssl,preview.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="stage.param=value or column.min_field=value; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Dataset = Annotated[str, typer.Argument(parser=place, help="Dataset: a folder, or a URL with s3://, gs:// or az://.")]


def dataset_in(source: str) -> Layout | None:
    """The dataset that a source is; None of songs, which may be wherever fsspec reads."""
    from pipeline.dataset.saved_config import is_dataset  # here because Arrow takes long to import

    try:
        layout = Layout.at(source)
    except ValueError:
        return None
    return layout if is_dataset(layout) else None


def split_names(text: str) -> list[str]:
    """Comma-separated names as a list."""
    return [name.strip() for name in text.split(",") if name.strip()]
