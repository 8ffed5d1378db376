"""`songmill train dit` and `songmill train export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pipeline.commands import train_options
from pipeline.commands.exit_codes import guarded
from pipeline.errors import UsageProblem
from schemas.files import naming

if TYPE_CHECKING:
    from pipeline.train.dit import Run
    from training.dit.memory_estimate import MemoryEstimate

app = typer.Typer(no_args_is_help=True, help="Train models on curated datasets, and export them.")


@app.command("dit")
def dit_command(
    datasets: train_options.Datasets = None,
    out: train_options.Out = None,
    where: Annotated[
        str | None,
        train_options.data("--where", "Only songs that match this SQL condition, e.g. quality.bandwidth_hz > 15000."),
    ] = None,
    ssl: Annotated[
        str | None, train_options.data("--ssl", "Encoders to align the model with, such as mert,m-hubert.")
    ] = None,
    vocabulary: Annotated[
        Path | None,
        train_options.data("--vocabulary", "Lyric vocabulary of the shards; songmill's own by default."),
    ] = None,
    from_audio: Annotated[
        bool,
        typer.Option(
            "--from-audio",
            help="Compute latents, SSL states and text embeddings for every batch instead of reading stored ones.",
            rich_help_panel="Data",
        ),
    ] = False,
    codec: Annotated[
        Path | None,
        train_options.data(
            "--codec", "With --from-audio: the codec's folder; by default the codec of the dataset's latents."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        train_options.model("--checkpoint", "Start from this folder in the released layout instead of random weights."),
    ] = None,
    size: Annotated[
        str | None, train_options.model("--size", "Size of a new model: tiny, small or released (default).")
    ] = None,
    preset: Annotated[
        str,
        train_options.training(
            "--preset", "Comma-separated: pretrain, finetune or tiny, and a card: 8gb, 12gb, 24gb (LoRA) or 80gb."
        ),
    ] = "",
    steps: Annotated[int | None, train_options.training("--steps", "Total optimizer steps.")] = None,
    lr: Annotated[float | None, train_options.training("--lr", "Learning rate after the warm-up.")] = None,
    batch_size: Annotated[
        int | None, train_options.training("--batch-size", "Songs per batch, on each worker.")
    ] = None,
    accumulation: Annotated[int | None, train_options.training("--accumulation", "Batches per step.")] = None,
    seed: Annotated[int | None, train_options.training("--seed", "Seed of weights, noise and dropout.")] = None,
    sample_prompts: Annotated[
        list[str] | None,
        train_options.training(
            "--sample-prompt",
            "Sample this prompt every samples.every steps; repeatable. Without --checkpoint, also give "
            "--set samples.codec=FOLDER and --set samples.text_encoder=FOLDER.",
        ),
    ] = None,
    config: train_options.Config = None,
    overrides: Annotated[
        list[str] | None,
        train_options.training(
            "--set", "Any other setting: key.sub=value, such as optimizer.decay=cosine; repeatable."
        ),
    ] = None,
    device: train_options.Device = "auto",
    threads: train_options.Threads = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train together.", rich_help_panel="Machine")] = 1,
    readers: Annotated[
        int | None,
        train_options.machine("--readers", "Processes per worker that read ahead; by default 4 on a GPU, else none."),
    ] = None,
    as_json: train_options.AsJson = False,
    quiet: train_options.Quiet = False,
) -> None:
    """Train the diffusion transformer. Running the same command again resumes from the last checkpoint.

    [bold]Examples[/]

      songmill train dit dataset --out run --preset tiny

      songmill train dit dataset --out run --preset finetune,24gb --checkpoint ACE-Step --lr 5e-5

      songmill train dit dataset --out run --checkpoint ACE-Step --sample-prompt "calm piano" --set samples.every=500

      songmill train dit dataset --out run --from-audio --codec ACE-Step --readers 2

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
        "--threads": threads,
        "--sample-prompt": sample_prompts,
        "DATASET": datasets or None,
    }
    presets = _names(preset)
    with guarded("interrupted; the same command resumes from the last checkpoint"):
        # Imported here: torch takes seconds to import, and the other commands do not need it.
        from pipeline.train.dit import estimate_memory, prepare, train
        from pipeline.train.dit_config import build_config

        if out is None:
            raise UsageProblem("--out is missing: name a folder for the run")
        settings = build_config(
            presets=presets, size=size, file=config, flags=flags, overrides=overrides or [], vocabulary=vocabulary
        )
        run = prepare(
            settings, out, from_audio=from_audio, codec=codec, device=device, workers=workers, readers=readers
        )
        memory = estimate_memory(run) if run.step < settings.steps else None
        if not quiet:
            _show_start(run, memory)
        with naming(out):
            complete = train(run, presets=presets, memory=memory, progress=not quiet)
    train_options.report_end(
        run, complete=complete, as_json=as_json, out=out, figure=", held out {validation/loss:.4f}"
    )


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the exported model.")],
    codec: Annotated[
        Path | None,
        typer.Option(help="Folder with music_dcae_f8c8/ and music_vocoder/; by default the one the run started from."),
    ] = None,
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint; the last one by default.")] = None,
    average: Annotated[bool, typer.Option("--average", help="Export the moving average of the weights.")] = False,
    text_encoder: Annotated[
        str | None,
        typer.Option(help="Text encoder to copy: a folder, or an entry of the model store such as e5-small."),
    ] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="Lyric vocabulary to copy.")] = None,
    vocoder: Annotated[
        Path | None,
        typer.Option(
            help="For an autoencoder run: folder with music_vocoder/; by default Griffin-Lim, which has no weights."
        ),
    ] = None,
) -> None:
    """Export a run: a checkpoint in the released layout, or the adapter file of a LoRA run.

    An autoencoder run is exported as a codec, with the options --step and --vocoder; a speaker run as an encoder for
    the stage speaker, with the option --step.

    [bold]Examples[/]

      songmill train export run --out CKPT --codec ACE-Step --average

      songmill train export autoencoder-run --out codec

      songmill train export speaker-run --out encoder

      songmill train export lora-run --out lora && songmill sample ACE-Step --lora lora --prompt folk --out a.wav
    """
    with guarded("interrupted; nothing is written"):
        from pipeline.sampling.sample import text_encoder_folder
        from pipeline.train.dit import config_errors_reported
        from stages.text.bpe import BUILT_IN
        from training.autoencoder.export import export_codec
        from training.dit.export import export_run
        from training.run.provenance import copy_provenance
        from training.run.run_folder import RunFolder
        from training.speaker.export import export_speaker_encoder

        with config_errors_reported():
            kind = RunFolder(run).kind
            takes = {"autoencoder": "--step and --vocoder", "speaker": "--step"}.get(kind)
            if takes and (codec or average or text_encoder or vocabulary or (vocoder and kind == "speaker")):
                raise UsageProblem(f"{run} is a run of kind {kind}, which takes only {takes}")
            if not takes and vocoder:
                raise UsageProblem("--vocoder is for autoencoder runs: a transformer's codec has its own")
            if kind == "autoencoder":
                written = export_codec(run, out, step=step, vocoder=vocoder)
            elif kind == "speaker":
                written = export_speaker_encoder(run, out, step=step)
            else:
                written = export_run(
                    run,
                    out,
                    codec=codec,
                    step=step,
                    average=average,
                    text_encoder=text_encoder_folder(text_encoder) if text_encoder else None,
                    vocabulary=vocabulary,
                    own_vocabulary=BUILT_IN,
                )
            copy_provenance(run, written)
    typer.echo(str(written))


def _show_start(run: "Run", memory: "MemoryEstimate | None") -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    seconds = float(run.songs.column("frames").sum()) * 4096 / 44100
    on = f"{run.workers} workers, each on {run.device}" if run.workers > 1 else run.device
    made = ", with features computed for every batch" if run.songs.maker else ""
    console.print(f"{len(run.songs)} songs, {seconds / 3600:.1f} hours{made}, on {on}")
    for why, count in run.songs.left_out.items():
        console.print(f"  {count} left out: {why}", markup=False)
    if run.step:
        console.print(f"resuming from step {run.step} of {run.config.steps}")
    if memory:
        console.print(
            f"{memory.parameters / 1e6:,.1f} M weights, {memory.trained / 1e6:,.1f} M trained; the largest batch "
            f"takes about {gigabytes(memory)}"
        )


def gigabytes(memory: "MemoryEstimate") -> str:
    """A memory estimate as text: the total in GB and its parts."""
    parts = ("weights", "gradients", "optimizer", "activations")
    by_part = ", ".join(f"{part} {getattr(memory, part) / 1e9:.2f}" for part in parts)
    return f"{memory.total / 1e9:.2f} GB: {by_part}"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
