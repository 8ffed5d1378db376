"""`songmill train autoencoder`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from pipeline.commands import train_options
from pipeline.commands.exit_codes import guarded
from pipeline.errors import UsageProblem
from schemas.files import naming

if TYPE_CHECKING:
    from pipeline.train.autoencoder import AutoencoderRun

# Flag -> the setting it sets; --set reaches all others.
FLAGS = {
    "--where": "data.where",
    "--checkpoint": "checkpoint",
    "--steps": "steps",
    "--seed": "seed",
    "--threads": "threads",
    "DATASET": "data.datasets",
}


def autoencoder_command(
    datasets: train_options.Datasets = None,
    out: train_options.Out = None,
    where: Annotated[
        str | None,
        train_options.data("--where", "Only songs that match this SQL condition, e.g. quality.bandwidth_hz > 15000."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        train_options.model("--checkpoint", "Start from this folder's music_dcae_f8c8/ instead of random weights."),
    ] = None,
    size: Annotated[
        str | None, train_options.model("--size", "Size of a new autoencoder: tiny or released (default).")
    ] = None,
    preset: Annotated[
        str | None,
        train_options.training("--preset", "tiny (1.5 minutes on two CPU cores) or released (the paper's)."),
    ] = None,
    steps: Annotated[
        int | None, train_options.training("--steps", "Stop after this many steps instead of after the last phase.")
    ] = None,
    seed: Annotated[int | None, train_options.training("--seed", "Seed of weights and crops.")] = None,
    config: train_options.Config = None,
    overrides: Annotated[
        list[str] | None,
        train_options.training("--set", "Any other setting: key.sub=value, such as head.steps=1000; repeatable."),
    ] = None,
    device: train_options.Device = "auto",
    threads: train_options.Threads = None,
    as_json: train_options.AsJson = False,
    quiet: train_options.Quiet = False,
) -> None:
    """Train the music autoencoder on curated songs. Running the same command again resumes from the last checkpoint.

    There are three phases, each with its own settings: full (short crops, all weights), middle (long crops, the deepest
    layers) and head (short crops, the last layers against a discriminator). A phase without steps is skipped.

    [bold]Examples[/]

      songmill train autoencoder dataset --out run --preset tiny

      songmill train autoencoder a b --out run --preset released --set head.batch_size=8 --device cuda

      songmill train export run --out codec

      songmill curate --add latents dataset --set latents.codec=codec
    """
    from schemas.storage.location import absolute

    flags = {
        "--where": where,
        "--checkpoint": checkpoint.resolve() if checkpoint else None,
        "--steps": steps,
        "--seed": seed,
        "--threads": threads,
        "DATASET": [*map(absolute, datasets)] if datasets else None,
    }
    with guarded("interrupted; the same command resumes from the last checkpoint"):
        # Imported here: torch takes seconds to import, and the other commands do not need it.
        from pipeline.train.autoencoder import prepare, train
        from pipeline.train.settings import named, read_settings
        from training.autoencoder.config import AutoencoderTrainConfig
        from training.autoencoder.presets import PRESETS, SIZES

        if out is None:
            raise UsageProblem("--out is missing: name a folder for the run")
        presets = [named("--preset", preset, PRESETS)] if preset else []
        presets += [{"model": named("--size", size, SIZES)}] if size else []
        settings = read_settings(
            AutoencoderTrainConfig, FLAGS, presets=presets, file=config, flags=flags, overrides=overrides or []
        )
        run = prepare(settings, out, device=device)
        if not quiet:
            _show_start(run)
        with naming(out):
            complete = train(run, progress=not quiet)
    figure = ", {validation/mel_distance_db:.2f} dB held out"
    train_options.report_end(run, complete=complete, as_json=as_json, out=out, figure=figure, digits=5)


def _show_start(run: "AutoencoderRun") -> None:
    from training.data.recordings import RATE_HZ

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    hours = sum(run.audio.table["samples"].to_pylist()) / RATE_HZ / 3600
    console.print(f"{len(run.audio.recordings)} songs, {hours:.2f} hours, on {run.device}")
    if run.audio.left_out:
        console.print(f"  {run.audio.left_out} left out: by --where, by a mark, or as duplicates")
    phases = ", ".join(f"{name} {phase.steps}" for name, phase in run.config.phases() if phase.steps)
    console.print(f"phases: {phases} steps")
    if run.step:
        console.print(f"resuming from step {run.step} of {run.config.steps}")
