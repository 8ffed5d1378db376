"""What stored features save: training on them, compared with computing them from audio for every batch.

    make demo && python -m benchmarks.trainer

Prints Markdown for RESULTS.md. All cases use the same songs, batches and tiny transformer, and one thread; each has a
process of its own, so that memory peaks do not hide each other. Codecs have random weights in the released format:
their speed does not depend on training.
"""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import random_model
from benchmarks.sampler_case import in_fresh_process
from benchmarks.trainer_case import Case, Measurement, measure
from pipeline.curation.features import add_features
from pipeline.models.store import ModelStore

_GIB = 1 << 30


def main(
    dataset: Annotated[Path, typer.Option(help="A curated one, such as that of `make demo`.")] = Path("demo/dataset"),
    codec: Annotated[list[str], typer.Option(help="Sizes: tiny or released; repeatable.")] = ["tiny", "released"],  # noqa: B006
    batch_size: Annotated[int, typer.Option(help="Songs a step.")] = 2,
    steps: Annotated[int, typer.Option(help="Timed steps from audio; three times as many on stored features.")] = 3,
) -> None:
    """Measure and print a section for RESULTS.md."""
    store = ModelStore()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        codecs = {size: write_codec(root / size, size) for size in codec}
        copy = Path(shutil.copytree(dataset, root / "dataset"))
        stored = root / "stored"
        shutil.copytree(dataset, stored)
        add_features(stored, ["latents", "ssl", "text_embedding"], [f"latents.codec={codecs[codec[0]]}"], store)
        cases = [Case(dataset=stored, name="stored", codec=None, batch_size=batch_size, steps=3 * steps)]
        for size, folder in codecs.items():
            cases.append(
                Case(dataset=copy, name=f"from audio, {size} codec", codec=folder, batch_size=batch_size, steps=steps)
            )
        measured = [_announced(case) for case in cases]
    require_same_losses(measured[0], measured[1])
    print(report(measured))


def write_codec(folder: Path, size: str) -> Path:
    """Write the encoder part of a codec, with random weights."""
    made = random_model.codec(size, torch.device("cpu"))
    made.autoencoder.save_pretrained(folder / "music_dcae_f8c8")
    made.vocoder.save_config(folder / "music_vocoder")
    return folder


def _announced(case: Case) -> Measurement:
    print(case.name, file=sys.stderr)
    return in_fresh_process(measure, case)


def require_same_losses(stored: Measurement, made: Measurement) -> None:
    """Check that all cases are the same training, so that they can be compared.

    Raises:
        RuntimeError: a loss differs by more than a millionth.
    """
    for step, losses in enumerate(zip(stored.losses, made.losses, strict=False), start=1):
        if abs(losses[0] - losses[1]) > 1e-6 * abs(losses[0]):
            raise RuntimeError(f"step {step}: {stored.case.name} has loss {losses[0]}, {made.case.name} {losses[1]}")


def report(measured: Sequence[Measurement]) -> str:
    """The report as Markdown; ratios are relative to the first case, stored features."""
    stored, *others = measured
    same = min(len(stored.losses), len(others[0].losses))
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, 1 thread"
    lines = [
        f"{date.today().isoformat()}, {machine}, load {os.getloadavg()[0]:.1f} after, torch {torch.__version__}; "
        f"{stored.songs} songs, {stored.case.batch_size} a batch; {stored.parameters / 1e6:.1f} M parameters.",
        "",
        "| features | timed steps | s a step | steps/s | waiting for data | peak GiB | stored is faster by |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {one.case.name} | {len(one.seconds)} | {one.step_s:.3f} | {1 / one.step_s:.3f} | {one.wait:.1%} | "
            f"{one.peak_bytes / _GIB:.2f} | {one.step_s / stored.step_s:.1f}x |"
            for one in measured
        ),
        "",
        f"s a step: the median. The losses of the first {same} steps of the first two rows agree to a millionth.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
