"""The `songmill` command.

Data goes to stdout, progress and errors to stderr. Exit code 0 means success, 1 a problem with data, 2 with usage.
Commands import what they need when they run: Ray, torch, DuckDB and Arrow would slow down `--help` by seconds.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.copy import copy_command
from pipeline.commands.curate import curate_command
from pipeline.commands.demo import demo_command
from pipeline.commands.doctor import doctor_command
from pipeline.commands.exit_codes import Commands
from pipeline.commands.explore import explore_command
from pipeline.commands.export import app as export_app
from pipeline.commands.forget import forget_command
from pipeline.commands.inspect import inspect_command
from pipeline.commands.lyrics import app as lyrics_app
from pipeline.commands.models import app as models_app
from pipeline.commands.plan import plan_command
from pipeline.commands.quarantine import quarantine_command
from pipeline.commands.runs import runs_command
from pipeline.commands.sample import sample_command
from pipeline.commands.train import app as train_app
from pipeline.commands.train_autoencoder import autoencoder_command
from pipeline.commands.train_speaker import speaker_command
from pipeline.commands.ui import ui_command
from pipeline.commands.verify import verify_command
from pipeline.commands.whatif import whatif_command
from pipeline.console.escaping import ProtectedApp

app = ProtectedApp(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
train_app.command("autoencoder")(autoencoder_command)
train_app.command("speaker")(speaker_command)
# `--help` lists commands in this order: try it, make a dataset, look at it, change it, use a model; then the groups.
app.command("demo")(demo_command)
app.command("doctor")(doctor_command)
app.command("plan")(plan_command)
app.command("curate")(curate_command)
app.command("inspect")(inspect_command)
app.command("explore")(explore_command)
app.command("runs")(runs_command)
app.command("copy")(copy_command)
app.command("verify")(verify_command)
app.command("quarantine")(quarantine_command)
app.command("whatif")(whatif_command)
app.command("forget")(forget_command)
app.command("sample")(sample_command)
app.command("ui")(ui_command)
app.add_typer(train_app, name="train")
app.add_typer(models_app, name="models")
app.add_typer(lyrics_app, name="lyrics")
app.add_typer(export_app, name="export")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"songmill {version('songmill')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Log progress on stderr; -vv logs every detail.")
    ] = 0,
    log_file: Annotated[Path | None, typer.Option("--log-file", help="Append every detail to this file.")] = None,
) -> None:
    """The open-source refinery for music AI: raw songs in, training-ready Parquet shards out.

    These options go before the command: [bold]songmill -v --log-file run.log curate songs/ --out dataset[/]
    """
    from pipeline.console.logs import logged

    context.with_resource(logged(verbose, log_file))


if __name__ == "__main__":
    app()
