"""`songmill train speaker`: from songs with vocals to an encoder of singers."""

import os
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from pipeline.errors import UsageProblem, naming
from pipeline.exits import guarded
from pipeline.train import command

if TYPE_CHECKING:
    from pipeline.train.speaker import SpeakerRun

# Flags and the settings they stand for; all others are reached by --set.
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
    datasets: command.Datasets = None,
    out: command.Out = None,
    where: Annotated[
        str | None,
        command.data("--where", "Train on the songs for which this SQL holds, e.g. vocals.active_ratio > 0.3."),
    ] = None,
    label: Annotated[
        str | None,
        command.data("--label", "Column that names the singer; artist by default. Rows without are their own."),
    ] = None,
    size: Annotated[str | None, command.model("--size", "Of the encoder: tiny, small or full, the default.")] = None,
    steps: Annotated[int | None, command.training("--steps", "Optimizer steps in all.")] = None,
    lr: Annotated[float | None, command.training("--lr", "Learning rate after the warm-up.")] = None,
    singers: Annotated[int | None, command.training("--singers", "Of a batch.")] = None,
    segments: Annotated[int | None, command.training("--segments", "Of each singer in a batch.")] = None,
    seed: Annotated[int | None, command.training("--seed", "Of weights, batches and augmentation.")] = None,
    config: command.Config = None,
    overrides: Annotated[
        list[str] | None, command.training("--set", "key.sub=value, such as objective.margin=0.3; may be repeated.")
    ] = None,
    device: command.Device = "auto",
    threads: command.Threads = None,
    workers: Annotated[
        int | None, command.machine("--workers", "Processes that separate vocals before the first step; one a CPU.")
    ] = None,
    as_json: command.AsJson = False,
    quiet: command.Quiet = False,
) -> None:
    """Train the speaker encoder on the voices of curated songs. The same command again goes on where it stopped.

    Before the first step every song with vocals is separated once; the run keeps what is sung in it.

    [bold]Examples[/]

      songmill train speaker dataset --out run --size tiny --steps 500

      songmill train speaker a b --out run --label artist --where "vocals.active_ratio > 0.3" --singers 32

      songmill train export run --out encoder

      songmill curate songs --out dataset --set speaker.engine=songmill --set speaker.encoder=encoder
    """
    flags = {
        "--where": where,
        "--label": label,
        "--singers": singers,
        "--segments": segments,
        "--steps": steps,
        "--lr": lr,
        "--seed": seed,
        "--threads": threads,
        "DATASET": [path.resolve() for path in datasets] if datasets else None,
    }
    with guarded("interrupted; the same command goes on from the last song or checkpoint"):
        # Here, for torch takes seconds to import and the other commands do without.
        from pipeline.train.settings import named, read_settings
        from pipeline.train.speaker import prepare, train
        from training.speaker.config import SIZES, SpeakerConfig

        if out is None:
            raise UsageProblem("--out is missing: say where the run goes")
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
    command.end(run, complete=complete, as_json=as_json, out=out, figure=figure)


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
        console.print(f"going on from step {run.step} of {run.config.steps}")
