"""`songmill train`: from shards to a model, and from a run to a checkpoint."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from pipeline.errors import DataProblem, UsageProblem

if TYPE_CHECKING:
    from pipeline.train.dit import Run
    from training.memory import MemoryEstimate

app = typer.Typer(no_args_is_help=True, help="Train models on shards, and turn runs into checkpoints.")

_DATA_PROBLEM, _USAGE_PROBLEM, _INTERRUPTED = 1, 2, 130


def _data(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Data", show_default=False)


def _model(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Model", show_default=False)


def _training(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Training", show_default=False)


def _machine(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel="Machine", show_default=False)


@app.command("dit")
def dit_command(
    datasets: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DATASET...", show_default=False, help="Folders that songmill curate wrote."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", show_default=False, help="Folder of the run; one that exists goes on.")
    ] = None,
    where: Annotated[
        str | None, _data("--where", "Train on the songs for which this SQL holds, e.g. quality.bandwidth_hz > 15000.")
    ] = None,
    ssl: Annotated[str | None, _data("--ssl", "Encoders whose states to align with, such as mert,m-hubert.")] = None,
    vocabulary: Annotated[
        Path | None, _data("--vocabulary", "The lyric vocabulary of the shards; songmill's own by default.")
    ] = None,
    checkpoint: Annotated[
        Path | None, _model("--checkpoint", "Start from this one, in the released layout, not from random weights.")
    ] = None,
    size: Annotated[str | None, _model("--size", "Of a new model: tiny, small or released, the default.")] = None,
    preset: Annotated[
        str,
        _training(
            "--preset", "Comma-separated: pretrain, finetune or tiny, and a card: 8gb, 12gb, 24gb (LoRA) or 80gb."
        ),
    ] = "",
    steps: Annotated[int | None, _training("--steps", "Optimizer steps in all.")] = None,
    lr: Annotated[float | None, _training("--lr", "Learning rate after the warm-up.")] = None,
    batch_size: Annotated[int | None, _training("--batch-size", "Songs a batch, on each worker.")] = None,
    accumulation: Annotated[int | None, _training("--accumulation", "Batches a step.")] = None,
    seed: Annotated[int | None, _training("--seed", "Of weights, noise and dropout.")] = None,
    config: Annotated[Path | None, _training("--config", "YAML of such settings. The command line wins.")] = None,
    overrides: Annotated[
        list[str] | None, _training("--set", "key.sub=value, such as optimizer.decay=cosine; may be repeated.")
    ] = None,
    device: Annotated[str, _machine("--device", "auto, cpu or cuda.")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Processes that train together.", rich_help_panel="Machine")] = 1,
    readers: Annotated[
        int | None, _machine("--readers", "Processes of each worker that read ahead; 4 on a GPU, else none.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the last figures.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train the diffusion transformer. The same command again goes on from the last checkpoint.

    [bold]Examples[/]

      songmill train dit dataset --out run --preset tiny

      songmill train dit dataset --out run --preset finetune,24gb --checkpoint ACE-Step --lr 5e-5

      songmill train dit a b --out run --where "license in ('CC0-1.0')" --workers 8 --set optimizer.decay=cosine
    """
    flags = {
        "--steps": steps,
        "--lr": lr,
        "--batch-size": batch_size,
        "--accumulation": accumulation,
        "--checkpoint": checkpoint,
        "--where": where,
        "--ssl": _names(ssl) if ssl is not None else None,
        "--seed": seed,
        "DATASET": datasets or None,
    }
    presets = _names(preset)
    with _guarded("interrupted; the same command goes on from the last checkpoint"):
        # Here, for torch takes seconds to import and the other commands do without.
        from pipeline.train.dit import prepare, reckon, train
        from pipeline.train.dit_config import build_config

        if out is None:
            raise UsageProblem("--out is missing: say where the run goes")
        settings = build_config(
            presets=presets, size=size, file=config, flags=flags, overrides=overrides or [], vocabulary=vocabulary
        )
        run = prepare(settings, out, device=device, workers=workers, readers=readers)
        reckoned = reckon(run) if run.step < settings.steps else None
        if not quiet:
            _show_start(run, reckoned)
        complete = train(run, presets=presets, reckoned=reckoned, progress=not quiet)
    figures = run.folder.figures()
    last = figures[-1] if figures else {}
    if not complete:
        _fail(f"stopped; the checkpoint of step {run.step} is saved and the same command goes on from it", _INTERRUPTED)
    if as_json:
        typer.echo(json.dumps(last, indent=2))
    else:
        held_out = f", held out {last['validation/loss']:.4f}" if "validation/loss" in last else ""
        typer.echo(f"{out}: {run.step} steps, loss {last['loss']:.4f}{held_out}; see {run.folder.root / 'README.md'}")


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option("--out", help="New folder, for a checkpoint in the released layout or a LoRA.")],
    codec: Annotated[
        Path | None,
        typer.Option(help="Folder with music_dcae_f8c8/ and music_vocoder/; by default the one the run started from."),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Of the checkpoint; the last one by default.")] = None,
    average: Annotated[bool, typer.Option("--average", help="Take the moving average of the weights.")] = False,
    text_encoder: Annotated[Path | None, typer.Option(help="Folder of the text encoder, to be copied.")] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="Lyric vocabulary, to be copied.")] = None,
) -> None:
    """Turn a checkpoint of a run into one in the released layout, or a LoRA run into the adapter's file.

    [bold]Examples[/]

      songmill train export run --out CKPT --codec ACE-Step --average

      songmill train export lora-run --out lora && songmill sample ACE-Step --lora lora --prompt folk --out a.wav
    """
    with _guarded("interrupted; nothing is written"):
        from pipeline.train.dit import problems_told
        from stages.lyric_bpe import BUILT_IN
        from training.export import export_run

        with problems_told():
            written = export_run(
                run,
                out,
                codec=codec,
                step=step,
                average=average,
                text_encoder=text_encoder,
                vocabulary=vocabulary,
                own_vocabulary=BUILT_IN,
            )
    typer.echo(str(written))


def _show_start(run: "Run", reckoned: "MemoryEstimate | None") -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    seconds = float(run.songs.column("frames").sum()) * 4096 / 44100
    on = f"{run.workers} workers, each on {run.device}" if run.workers > 1 else run.device
    console.print(f"{len(run.songs)} songs, {seconds / 3600:.1f} hours, on {on}")
    for why, count in run.songs.left_out.items():
        console.print(f"  {count} left out: {why}", markup=False)
    if run.step:
        console.print(f"going on from step {run.step} of {run.config.steps}")
    if reckoned:
        console.print(
            f"{reckoned.parameters / 1e6:,.1f} M weights, {reckoned.trained / 1e6:,.1f} M trained; the largest batch "
            f"takes about {gigabytes(reckoned)}"
        )


def gigabytes(reckoned: "MemoryEstimate") -> str:
    """An estimate as a user reads it."""
    parts = ("weights", "gradients", "optimizer", "activations")
    told = ", ".join(f"{part} {getattr(reckoned, part) / 1e9:.2f}" for part in parts)
    return f"{reckoned.total / 1e9:.2f} GB: {told}"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@contextmanager
def _guarded(interrupted: str) -> Iterator[None]:
    try:
        yield
    except UsageProblem as error:
        _fail(str(error), _USAGE_PROBLEM)
    except DataProblem as error:
        _fail(str(error), _DATA_PROBLEM)
    except KeyboardInterrupt:
        _fail(interrupted, _INTERRUPTED)


def _fail(message: str, code: int) -> NoReturn:
    typer.secho(f"error: {message}", fg="red", err=True)
    raise typer.Exit(code)
