"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[str | None, typer.Argument(help="Folder, glob or manifest (.jsonl .csv .parquet); local or a URI.")]
Out = Annotated[Path | None, typer.Option("--out", help="Dataset folder.")]
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
Dataset = Annotated[Path, typer.Argument(help="Dataset folder.")]


def split_names(text: str) -> list[str]:
    """Comma-separated names as a list."""
    return [name.strip() for name in text.split(",") if name.strip()]
