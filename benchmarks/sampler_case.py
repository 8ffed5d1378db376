"""One measurement of the sampler, in a process of its own: time and memory for a song."""

import resource
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from benchmarks import random_model
from training.dit.flops import card_peak, matmul_peak, synchronize, velocity_flops
from training.model import ACEStepTransformer2DModel
from training.sampling import Sampler, SamplingOptions, Step
from training.sampling.conditions import Conditions
from training.sampling.guidance import Interval
from training.sampling.velocity import GuidedVelocity
from training.sampling.window import frames_of

_PROBED_STEPS = 8  # on a CPU: one that holds the encoding and is left out, four guided ones, three unguided ones

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Case(_Frozen):
    """What to measure.

    Attributes:
        size: a key of `random_model.TRANSFORMERS`.
        device: "cpu" or "cuda".
        duration: seconds of audio.
        steps: numbers of steps of the runs.
        compiled: whether the transformer's blocks are compiled.
        decode: whether to decode the latents too.
    """

    size: str
    device: str
    duration: float
    steps: tuple[int, ...]
    compiled: bool = False
    decode: bool = True


class Run(_Frozen):
    """From encoded text to latents in a number of steps.

    Attributes:
        steps: number of steps.
        seconds: time of the run, including the encoding of the conditions.
        measured: False if extrapolated from the times of encoding, a guided and an unguided step.
    """

    steps: int
    seconds: float
    measured: bool


class Measurement(_Frozen):
    """The results of one case; memory is the peak of the process or the GPU, in bytes.

    Attributes:
        case: what was measured.
        encode_s: time of the transformer's encoders on the conditions of all branches, and of all keys and values.
        unguided_s: time of a step outside the guidance interval, with one velocity.
        guided_s: time of a step within it, with two velocities.
        runs: one for each number of steps.
        decode_s: time to decode latents to 48 kHz, None if skipped.
        compile_s: extra time until everything was compiled.
        transformer_bytes: peak memory before the codec was loaded.
        peak_bytes: peak memory with the codec, None if skipped.
        step_flops: FLOPs of an unguided step; a guided one has twice as many.
        peak_flops: peak FLOP/s of the machine.
        peak_of: the source of `peak_flops`.
    """

    case: Case
    encode_s: float
    unguided_s: float
    guided_s: float
    runs: tuple[Run, ...]
    decode_s: float | None
    compile_s: float | None
    transformer_bytes: int
    peak_bytes: int | None
    step_flops: int
    peak_flops: float
    peak_of: str

    def share_of_peak(self, run: Run) -> float:
        """Share of the machine's peak FLOP/s over the steps of a run, without the encoding before them."""
        velocities = run.steps + guided_steps(run.steps)
        return velocities * self.step_flops / (run.seconds - self.encode_s) / self.peak_flops


def guided_steps(steps: int) -> int:
    """Number of a run's steps that compute two velocities under the default options."""
    interval = Interval.of(SamplingOptions(), steps)
    return interval.stop - interval.start


def in_fresh_process(
    function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """The result of a function that runs in a fresh process, so that its memory is not affected by other cases."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args, kwargs)


def measure(case: Case) -> Measurement:
    """Measure one case.

    Raises:
        RuntimeError: the latents are not finite.
    """
    device = torch.device(case.device)
    peak_before, _ = _peak(device)
    transformer = random_model.transformer(case.size, device, compiled=case.compiled)
    song = _Song(Sampler(transformer), random_model.conditions(transformer.config, device), case.duration)
    compile_s = song.warm_up(case.compiled)
    encode_s = min(_encode(transformer, song.conditions, case, device) for _ in range(3))
    unguided_s, guided_s = song.step_seconds(27 if device.type == "cuda" else _PROBED_STEPS)

    def run(steps: int) -> Run:
        if device.type == "cuda":
            return Run(steps=steps, seconds=min(song.seconds(steps) for _ in range(2)), measured=True)
        guided = guided_steps(steps)
        seconds = encode_s + guided * guided_s + (steps - guided) * unguided_s
        return Run(steps=steps, seconds=seconds, measured=False)

    runs = tuple(run(steps) for steps in case.steps)
    transformer_bytes = _peak_memory(device)
    peak, peak_of = _peak(device)
    decode_s = _decode(case, device, song.latents) if case.decode else None
    return Measurement(
        case=case,
        encode_s=encode_s,
        unguided_s=unguided_s,
        guided_s=guided_s,
        runs=runs,
        decode_s=decode_s,
        compile_s=compile_s,
        transformer_bytes=transformer_bytes,
        peak_bytes=_peak_memory(device) if case.decode else None,
        step_flops=velocity_flops(transformer.config, frames_of(case.duration), song.condition_tokens),
        peak_flops=max(peak, peak_before),
        peak_of=peak_of,
    )


class _Song:
    """A job that samples the same song every time."""

    def __init__(self, sampler: Sampler, conditions: Conditions, duration: float) -> None:
        self.conditions = conditions
        self.condition_tokens = 1 + conditions.text.shape[1] + conditions.lyrics.shape[1]
        self.latents = torch.empty(0)
        self._sampler = sampler
        self._duration = duration

    def seconds(self, steps: int, on_step: Callable[[Step], None] | None = None) -> float:
        """Time of one run, through the sampler's public interface."""
        given = self.conditions
        synchronize(self._sampler.device)
        started = time.perf_counter()
        self.latents = self._sampler.generate_latents(
            text=given.text,
            text_mask=given.text_mask,
            text_null=given.text_null,
            speaker=given.speaker,
            lyrics=given.lyrics,
            lyric_mask=given.lyric_mask,
            duration=self._duration,
            infer_steps=steps,
            on_step=on_step,
        )
        synchronize(self._sampler.device)
        elapsed = time.perf_counter() - started
        if not self.latents.isfinite().all():
            raise RuntimeError(f"latents of {self._duration:g} s are not finite after {steps} steps")
        return elapsed

    def warm_up(self, compiled: bool) -> float | None:
        """Seconds spent on compilation; otherwise a GPU loads and tunes kernels, and a CPU needs no warm-up."""
        if not compiled:
            if self._sampler.device.type == "cuda":
                self.seconds(4)
            return None
        torch.compiler.config.force_disable_caches = True  # what an earlier run compiled is not to be found
        started = time.perf_counter()
        self._sampler.warm_up()
        self.seconds(4)
        return time.perf_counter() - started - 2 * self.seconds(4)

    def step_seconds(self, steps: int) -> tuple[float, float]:
        """The fastest unguided and guided step of one run, without its first step, which has the encoding in it.

        The fastest, because other load on the machine only ever adds to the time.
        """
        ends: list[float] = []

        def note(_step: Step) -> None:
            synchronize(self._sampler.device)
            ends.append(time.perf_counter())

        self.seconds(steps, note)
        interval = Interval.of(SamplingOptions(), steps)
        took = {index: ends[index] - ends[index - 1] for index in range(1, steps)}
        guided = [seconds for index, seconds in took.items() if index in interval]
        return min(seconds for index, seconds in took.items() if index not in interval), min(guided)


@torch.no_grad()
def _encode(transformer: ACEStepTransformer2DModel, conditions: Conditions, case: Case, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    GuidedVelocity(transformer, conditions, SamplingOptions(), 27, frames_of(case.duration))
    synchronize(device)
    return time.perf_counter() - started


def _decode(case: Case, device: torch.device, latents: Tensor) -> float:
    codec = random_model.codec(case.size, device)
    if device.type == "cuda":
        codec.decode(latents)  # kernels are loaded and tuned
    synchronize(device)
    started = time.perf_counter()
    finite = codec.decode(latents).isfinite().all().item()
    if not finite:
        raise RuntimeError(f"the waveform of {case.duration:g} s is not finite")
    return time.perf_counter() - started


def _peak(device: torch.device) -> tuple[float, str]:
    stated = card_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if stated:
        return stated, "data sheet"
    dtype = random_model.dtype_on(device)
    return matmul_peak(device, dtype), f"measured product of matrices, {str(dtype).removeprefix('torch.')}"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux hands the parent's peak down to a child's getrusage, but not to this line of its status.
    status: dict[str, Any] = {}
    if (path := Path("/proc/self/status")).exists():
        status = dict(line.split(":", 1) for line in path.read_text().splitlines())
    if "VmHWM" in status:
        return int(status["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
