"""The results of `benchmarks.sampler`, as JSON, on the terminal and as Markdown."""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from benchmarks.arithmetic import exponent
from benchmarks.random_model import LYRIC_TOKENS, TEXT_TOKENS
from benchmarks.sampler_case import Measurement, Run
from benchmarks.sampler_variants import Variant

# Batch 1, 27 and 60 steps, times real time, as the makers of ACE-Step publish them.
PUBLISHED = {"RTX 4090": {27: 34.5, 60: 15.6}, "A100": {27: 27.3, 60: 12.3}}
_PUBLISHED_STEPS = (27, 60)

_CASE_COLUMNS = (
    "audio s",
    "mode",
    "encoding s",
    "unguided step s",
    "guided step s",
    "decoding s",
    "transformer GiB",
    "with codec GiB",
)
_RUN_COLUMNS = ("audio s", "mode", "steps", "transformer s", "x real time", "of peak", "with decoding s", "x real time")


class Machine(BaseModel):
    """The machine and the versions of a measurement.

    Attributes:
        name: name of the GPU, or of the processor with its number of cores.
        torch: version of torch.
        date: ISO date.
        threads: threads of torch on the CPU.
        load: load average of the minute before.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    torch: str
    date: str
    threads: int
    load: float


class Growth(BaseModel):
    """Exponents p of time ~ duration ** p."""

    model_config = ConfigDict(frozen=True)

    mode: str
    transformer: float | None
    decoding: float | None


class Report(BaseModel):
    """All of a run.

    Attributes:
        machine: see `Machine`.
        size: a key of `random_model.TRANSFORMERS`.
        parameters: number of parameters of the transformer.
        velocity_parameters: those that every step uses, that is, without the encoders of the conditions and the REPA
            heads.
        measurements: eager ones, then compiled ones.
        variants: see `sampler_variants`.
        variants_duration: seconds of audio at which the variants were compared.
        growth: one for each mode.
    """

    model_config = ConfigDict(frozen=True)

    machine: Machine
    size: str
    parameters: int
    velocity_parameters: int
    measurements: tuple[Measurement, ...]
    variants: tuple[Variant, ...]
    variants_duration: float
    growth: tuple[Growth, ...]


def growth(measurements: Sequence[Measurement]) -> tuple[Growth, ...]:
    """How time grows with duration in every mode, for the first number of steps."""
    found = []
    for mode in dict.fromkeys(map(_mode, measurements)):
        of_mode = [m for m in measurements if _mode(m) == mode]
        decoded = [(m.case.duration, m.decode_s) for m in of_mode if m.decode_s is not None]
        found.append(
            Growth(
                mode=mode,
                transformer=exponent([m.case.duration for m in of_mode], [m.runs[0].seconds for m in of_mode]),
                decoding=exponent([duration for duration, _ in decoded], [seconds for _, seconds in decoded]),
            )
        )
    return tuple(found)


def tables(report: Report) -> list[Table]:
    """The report as tables for the terminal."""
    found = []
    for columns, rows in _sections(report):
        found.append(Table(*columns))
        for row in rows:
            found[-1].add_row(*row)
    return found


def markdown(report: Report) -> str:
    """A section for RESULTS.md."""
    blocks = ["\n".join(_tabled(columns, rows)) for columns, rows in _sections(report)]
    return "\n\n".join([f"## Sampler, {report.size} size", title(report), *blocks, "  \n".join(notes(report))])


def title(report: Report) -> str:
    """Model and machine."""
    machine = report.machine
    size = (
        f"{report.velocity_parameters / 1e6:.0f} M parameters ({report.parameters / 1e6:.0f} M with encoders and heads)"
    )
    load = f"{machine.threads} threads, load {machine.load:.1f} before"
    return f"{machine.date}, {machine.name}, {load}, torch {machine.torch}. Transformer of {size}, random weights."


def notes(report: Report) -> list[str]:
    """Remarks on all rows."""
    first = report.measurements[0]
    lines = [
        f"Batch 1, {TEXT_TOKENS} text and {LYRIC_TOKENS} lyric tokens, default guidance; texts come encoded. ~ is put "
        "together: a run from the times of encoding, a guided and an unguided step; decoding in proportion to the "
        "longest audio decoded.",
        f"Of peak: the matrix products of a run's steps, {first.step_flops / 1e9:.0f} GFLOP an unguided step at "
        f"{first.case.duration:g} s, against {first.peak_flops / 1e12:.2f} TFLOP/s ({first.peak_of}; taken anew for "
        "each case).",
    ]
    for mode in report.growth:
        lines.append(
            f"Time ~ duration^p, {mode.mode}: transformer p = {_exponent(mode.transformer)}, "
            f"decoding p = {_exponent(mode.decoding)}."
        )
    compiling = [f"{m.case.duration:g} s: {m.compile_s:.1f} s" for m in report.measurements if m.compile_s is not None]
    if compiling:
        lines.append(f"Compilation, nothing cached, for audio of {', '.join(compiling)}.")
    return lines


def _sections(report: Report) -> list[tuple[Sequence[str], list[list[str]]]]:
    """Columns and rows of every table; ~ marks extrapolated values."""
    measured = report.measurements
    return [
        (_CASE_COLUMNS, [_case_row(m, measured) for m in measured]),
        (_RUN_COLUMNS, [_run_row(m, run, measured) for m in measured for run in m.runs]),
        (
            (f"both velocities of a guided step, {report.variants_duration:g} s", "ms", "ratio"),
            [[v.name, f"{v.seconds * 1e3:.0f}", f"{v.ratio:.2f}"] for v in report.variants],
        ),
        (
            ("published, batch 1, x real time", *(f"{steps} steps" for steps in _PUBLISHED_STEPS)),
            [[card, *(f"{speeds[steps]:g}" for steps in _PUBLISHED_STEPS)] for card, speeds in PUBLISHED.items()],
        ),
    ]


def _case_row(m: Measurement, among: Iterable[Measurement]) -> list[str]:
    decoding, decoded = _decoding(m, among)
    return [
        f"{m.case.duration:g}",
        _mode(m),
        f"{m.encode_s:.3f}",
        f"{m.unguided_s:.3f}",
        f"{m.guided_s:.3f}",
        "" if decoding is None else f"{_sign(decoded)}{decoding:.2f}",
        f"{m.transformer_bytes / 2**30:.2f}",
        "" if m.peak_bytes is None else f"{m.peak_bytes / 2**30:.2f}",
    ]


def _run_row(m: Measurement, run: Run, among: Iterable[Measurement]) -> list[str]:
    decoding, decoded = _decoding(m, among)
    row = [
        f"{m.case.duration:g}",
        _mode(m),
        str(run.steps),
        f"{_sign(run.measured)}{run.seconds:.2f}",
        f"{_sign(run.measured)}{m.case.duration / run.seconds:.2f}",
        f"{m.share_of_peak(run):.0%}",
    ]
    if decoding is None:
        return [*row, "", ""]
    whole, sign = run.seconds + decoding, _sign(run.measured and decoded)
    return [*row, f"{sign}{whole:.2f}", f"{sign}{m.case.duration / whole:.2f}"]


def _decoding(m: Measurement, among: Iterable[Measurement]) -> tuple[float | None, bool]:
    """Seconds to decode a case's audio, and whether they were measured with it."""
    if m.decode_s is not None:
        return m.decode_s, True
    others = [(other.case.duration, other.decode_s) for other in among if other.decode_s is not None]
    if not others:
        return None, False
    duration, seconds = max(others)
    return seconds * m.case.duration / duration, False


def _sign(measured: bool) -> str:
    return "" if measured else "~"


def _mode(m: Measurement) -> str:
    return "compiled" if m.case.compiled else "eager"


def _exponent(p: float | None) -> str:
    return "- (needs two durations)" if p is None else f"{p:.2f}"


def _tabled(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    header = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return [*header, *(f"| {' | '.join(row)} |" for row in rows)]
