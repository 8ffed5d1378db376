"""`songmill train speaker`."""

import os
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from pipeline.commands import train_options
from pipeline.commands.exit_codes import guarded
from pipeline.errors import UsageProblem
from schemas.files import naming

if TYPE_CHECKING:
    from pipeline.train.speaker import SpeakerRun

# Flag -> the setting it sets; --set reaches all others.
FLAGS = {
    "--where": "data.where",
    "--label": "data.label",
    "--singers": "data.singers",
    "--segments": "data.segments",
    "--steps": "steps",
    "--lr": "optimizer.lr",
    "--seed": "seed",
    "--threads": "threads",
    "DATASET": "data.datasets",
}


def speaker_command(
    datasets: train_options.Datasets = None,
    out: train_options.Out = None,
    where: Annotated[
        str | None,
        train_options.data("--where", "Only songs that match this SQL condition, e.g. vocals.active_ratio > 0.3."),
    ] = None,
    label: Annotated[
        str | None,
        train_options.data(
            "--label", "Column that names the singer; artist by default. A song without one is its own singer."
        ),
    ] = None,
    size: Annotated[
        str | None, train_options.model("--size", "Size of the encoder: tiny, small or full (default).")
    ] = None,
    steps: Annotated[int | None, train_options.training("--steps", "Total optimizer steps.")] = None,
    lr: Annotated[float | None, train_options.training("--lr", "Learning rate after the warm-up.")] = None,
    singers: Annotated[int | None, train_options.training("--singers", "Singers per batch.")] = None,
    segments: Annotated[int | None, train_options.training("--segments", "Segments per singer in a batch.")] = None,
    seed: Annotated[int | None, train_options.training("--seed", "Seed of weights, batches and augmentation.")] = None,
    config: train_options.Config = None,
    overrides: Annotated[
        list[str] | None,
        train_options.training("--set", "Any other setting: key.sub=value, such as objective.margin=0.3; repeatable."),
    ] = None,
    device: train_options.Device = "auto",
    threads: train_options.Threads = None,
    workers: Annotated[
        int | None,
        train_options.machine(
            "--workers", "Processes that separate vocals before the first step; by default one per CPU."
        ),
    ] = None,
    as_json: train_options.AsJson = False,
    quiet: train_options.Quiet = False,
) -> None:
    """Train the speaker encoder on the voices of curated songs. Running the same command again resumes it.

    Before the first step, the vocals of every song are separated once; the run keeps their sung segments.

    [bold]Examples[/]

      songmill train speaker dataset --out run --size tiny --steps 500

      songmill train speaker a b --out run --label artist --where "vocals.active_ratio > 0.3" --singers 32

      songmill train export run --out encoder

      songmill curate songs --out dataset --set speaker.engine=songmill --set speaker.encoder=encoder
    """
    from schemas.storage.location import absolute

    flags = {
        "--where": where,
        "--label": label,
        "--singers": singers,
        "--segments": segments,
        "--steps": steps,
        "--lr": lr,
        "--seed": seed,
        "--threads": threads,
        "DATASET": [*map(absolute, datasets)] if datasets else None,
    }
    with guarded("interrupted; the same command resumes from the last song or checkpoint"):
        # Imported here: torch takes seconds to import, and the other commands do not need it.
        from pipeline.train.settings import named, read_settings
        from pipeline.train.speaker import prepare, train
        from training.speaker.config import SIZES, SpeakerConfig

        if out is None:
            raise UsageProblem("--out is missing: name a folder for the run")
        presets = [{"model": named("--size", size, SIZES)}] if size else []
        settings = read_settings(
            SpeakerConfig, FLAGS, presets=presets, file=config, flags=flags, overrides=overrides or []
        )
        run = prepare(settings, out, device=device, workers=workers or os.cpu_count() or 1, progress=not quiet)
        if not quiet:
            _show_start(run)
        with naming(out):
            complete = train(run, progress=not quiet)
    figure = ", equal error rate {validation/eer:.3f}"
    train_options.report_end(run, complete=complete, as_json=as_json, out=out, figure=figure)


def _show_start(run: "SpeakerRun") -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    voices = run.voices
    segments = sum(song.segments for song in voices.songs)
    console.print(
        f"{segments} segments of {len(voices.songs)} songs by {len(voices.singers)} singers, "
        f"{len(voices.held_out)} more held out, on {run.device}"
    )
    for track_id, problem in run.failed.items():
        console.print(f"  left out {track_id}: {problem}", markup=False)
    if run.step:
        console.print(f"resuming from step {run.step} of {run.config.steps}")
