"""Speed of the sampler with random weights: by duration and by implementation, with and without decoding.

    python -m benchmarks.sampler                     # CPU: 12 blocks of 145 M parameters, float32
    python -m benchmarks.sampler --device cuda       # the released 3.3 B, bfloat16, eager and compiled

Every case has a process of its own, so that memory peaks do not hide each other. On a GPU complete runs are measured;
on a CPU only a few steps, from which the time of a run is extrapolated.
"""

import os
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks import random_model
from benchmarks.sampler_case import Case, Measurement, in_fresh_process, measure
from benchmarks.sampler_report import Machine, Report, growth, markdown, notes, tables, title
from benchmarks.sampler_variants import compare

_DECODED_ON_CPU_S = 30.0  # longer audio is decoded in windows of 24 s at the same speed

app = typer.Typer(add_completion=False)


@app.command()
def main(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    size: Annotated[str | None, typer.Option(help="released, small or tiny; by default what suits the device.")] = None,
    duration: Annotated[list[float], typer.Option(help="Seconds of audio; repeatable.")] = [30.0, 60.0, 240.0],  # noqa: B006
    steps: Annotated[list[int], typer.Option(help="Of a run; repeatable.")] = [27, 60],  # noqa: B006
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Measure compiled blocks too; by default on a GPU.")
    ] = None,
    decode_up_to: Annotated[
        float | None, typer.Option(help="Longest audio to decode, seconds; by default 30 on a CPU, all on a GPU.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for everything that was measured.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a section for RESULTS.md.")] = False,
) -> None:
    """Measure the sampler with random weights."""
    on_gpu = device.startswith("cuda")
    size = size or ("released" if on_gpu else "small")
    if size not in random_model.TRANSFORMERS:
        raise typer.BadParameter(f"size must be one of {', '.join(random_model.TRANSFORMERS)}, not {size}")
    if on_gpu and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here: leave out --device cuda")
    compiled = on_gpu if compiled is None else compiled
    if decode_up_to is None:
        decode_up_to = max(duration) if on_gpu else _DECODED_ON_CPU_S
    cases = [
        Case(
            size=size,
            device=device,
            duration=seconds,
            steps=tuple(steps),
            compiled=mode,
            decode=not mode and seconds <= decode_up_to,  # the codec is the same in both modes
        )
        for mode in ([False, True] if compiled else [False])
        for seconds in sorted(duration)
    ]
    report = measured(cases)
    if json:
        json.write_text(report.model_dump_json(indent=2) + "\n")
    print(markdown(report)) if as_markdown else show(report)


def measured(cases: list[Case]) -> Report:
    """Measure all cases, and the variants of a step at the shortest duration."""
    machine = _machine(cases[0].device)
    measurements = tuple(_announced(case) for case in cases)
    compared = cases[0].model_copy(update={"compiled": cases[-1].compiled})
    print("ways to compute a step", file=sys.stderr)
    parameters, velocity_parameters = random_model.parameters(cases[0].size)
    return Report(
        machine=machine,
        size=cases[0].size,
        parameters=parameters,
        velocity_parameters=velocity_parameters,
        measurements=measurements,
        variants=tuple(in_fresh_process(compare, compared)),
        variants_duration=compared.duration,
        growth=growth(measurements),
    )


def show(report: Report) -> None:
    """Print the report on the terminal."""
    console = Console()
    console.print(title(report), highlight=False)
    for table in tables(report):
        console.print(table)
    for line in notes(report):
        console.print(line, highlight=False)


def _announced(case: Case) -> Measurement:
    mode = "compiled" if case.compiled else "eager"
    print(f"{case.size}, {case.duration:g} s, {mode}", file=sys.stderr)
    return in_fresh_process(measure, case)


def _machine(device: str) -> Machine:
    cores = len(os.sched_getaffinity(0))
    processor = f"{platform.processor() or platform.machine()}, {cores} cores"
    return Machine(
        name=torch.cuda.get_device_name(device) if device.startswith("cuda") else processor,
        torch=torch.__version__,
        date=date.today().isoformat(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0],
    )


if __name__ == "__main__":
    app()
