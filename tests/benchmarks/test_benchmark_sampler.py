"""The sampler's benchmark: its count of arithmetic, its fit, its report."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks import random_model, sampler, sampler_case
from benchmarks.arithmetic import exponent
from benchmarks.sampler_case import Case, Measurement, Run, guided_steps, in_fresh_process, measure
from benchmarks.sampler_report import Report, growth, markdown
from training.dit.flops import card_peak, velocity_flops
from training.sampling.velocity import Branch, BranchedVelocity

_CPU = torch.device("cpu")


@torch.no_grad()
@pytest.mark.parametrize(("frames", "tokens", "batch"), [(21, 5, 1), (64, 33, 2)])
def test_flops_are_those_that_torch_counts(frames: int, tokens: int, batch: int) -> None:
    transformer = random_model.transformer("tiny", _CPU)
    states = torch.randn(batch, tokens, transformer.config["inner_dim"])
    velocity = BranchedVelocity(transformer, [Branch(states, torch.ones(batch, tokens))], frames)
    # torch counts attention's products of matrices only where it sees them.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        velocity.first(torch.randn(batch, 8, 16, frames), 0.5)
    assert counter.get_total_flops() == batch * velocity_flops(transformer.config, frames, tokens)


@pytest.mark.parametrize("p", [0.0, 1.0, 1.7])
def test_exponent_of_a_power(p: float) -> None:
    durations = [30.0, 60.0, 240.0]
    assert exponent(durations, [0.3 * d**p for d in durations]) == pytest.approx(p)


def test_exponent_of_noise_is_the_least_squares_one() -> None:
    # log2 of the durations 0, 1, 2, of the seconds 0, 2, 1: slope 1/2.
    assert exponent([1, 2, 4], [1, 4, 2]) == pytest.approx(0.5)


def test_one_duration_has_no_exponent() -> None:
    assert exponent([30.0], [1.0]) is None


def test_cards_are_known_by_their_exact_names() -> None:
    assert card_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert card_peak("NVIDIA GeForce RTX 4090") == 165e12
    assert card_peak("NVIDIA GeForce RTX 4090 Laptop GPU") is None


@pytest.mark.parametrize(("steps", "guided"), [(27, 14), (60, 30)])
def test_guided_steps_of_a_run(steps: int, guided: int) -> None:
    assert guided_steps(steps) == guided


def test_share_of_peak_counts_guided_steps_twice_and_leaves_out_the_encoding() -> None:
    measured = _measurement(encode_s=1.0, seconds=42.0, step_flops=50, peak_flops=100.0)
    assert measured.share_of_peak(measured.runs[0]) == pytest.approx((27 + 14) * 50 / 41 / 100)


def test_small_model_has_about_150_million_parameters() -> None:
    everything, of_velocity = random_model.parameters("small")
    assert 140e6 < of_velocity < 155e6
    assert everything > of_velocity


def test_released_model_has_3_3_billion_parameters() -> None:
    assert random_model.parameters("released")[0] == pytest.approx(3.3e9, rel=0.02)


def test_decoding_of_longer_audio_is_scaled_and_marked() -> None:
    short, long = (
        _measurement(duration=seconds, decode_s=decode_s, seconds=2 * seconds)
        for seconds, decode_s in ((30.0, 60.0), (60.0, None))
    )
    report = _report(short, long)
    rows = [line for line in markdown(report).splitlines() if line.startswith("| 60 |")]
    assert "~120.00" in rows[0]  # the case
    assert "~240.00" in rows[1]  # its run: 120 s for the transformer, as much for decoding
    assert report.growth[0].transformer == pytest.approx(1.0)
    assert report.growth[0].decoding is None


def test_a_case_has_a_process_of_its_own() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases run in this process, which has imported everything already; what the machine can do is not measured."""

    def run(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    monkeypatch.setattr(sampler, "in_fresh_process", run)
    monkeypatch.setattr(sampler_case, "matmul_peak", lambda _device, _dtype: 1e11)


def test_command_writes_its_report_of_a_random_tiny_model(quick: None, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    arguments = ["--size", "tiny", "--duration", "2", "--duration", "1", "--steps", "27", "--decode-up-to", "1"]
    result = CliRunner().invoke(sampler.app, [*arguments, "--json", str(path), "--markdown"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "## Sampler, tiny size" in result.stdout
    assert torch.__version__ in result.stdout
    report = Report.model_validate(json.loads(path.read_text()))
    first, second = report.measurements
    assert (first.case.duration, second.case.duration) == (1.0, 2.0)
    assert first.decode_s
    assert second.decode_s is None
    assert first.transformer_bytes > 0
    run = first.runs[0]
    assert not run.measured
    assert run.seconds == pytest.approx(first.encode_s + 14 * first.guided_s + 13 * first.unguided_s)
    assert report.variants[0].ratio == 1.0
    assert len(report.variants) == 3


@pytest.mark.parametrize("arguments", [["--size", "huge"], ["--device", "cuda"]])
def test_what_cannot_be_measured_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert CliRunner().invoke(sampler.app, arguments).exit_code == 2


def test_latents_that_are_not_finite_are_an_error(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(size: str, device: torch.device, **options: Any) -> Any:
        model = made(size, device, **options)
        torch.nn.init.constant_(model.final_layer.linear.bias, float("nan"))
        return model

    made = random_model.transformer
    monkeypatch.setattr(random_model, "transformer", broken)
    with pytest.raises(RuntimeError, match="not finite"):
        measure(Case(size="tiny", device="cpu", duration=1.0, steps=(27,), decode=False))


def _measurement(duration: float = 30.0, seconds: float = 1.0, **fields: Any) -> Measurement:
    given: dict[str, Any] = {
        "encode_s": 0.5,
        "unguided_s": 1.0,
        "guided_s": 2.0,
        "decode_s": None,
        "compile_s": None,
        "transformer_bytes": 1,
        "peak_bytes": None,
        "step_flops": 1,
        "peak_flops": 1.0,
        "peak_of": "nothing",
    }
    return Measurement(
        case=Case(size="tiny", device="cpu", duration=duration, steps=(27,)),
        runs=(Run(steps=27, seconds=seconds, measured=False),),
        **(given | fields),
    )


def _report(*measurements: Measurement) -> Report:
    machine = {"name": "a machine", "torch": "2", "date": "2026-11-23", "threads": 1, "load": 0.0}
    return Report(
        machine=machine,  # type: ignore[arg-type]
        size="tiny",
        parameters=2,
        velocity_parameters=1,
        measurements=measurements,
        variants=(),
        variants_duration=30.0,
        growth=growth(measurements),
    )
