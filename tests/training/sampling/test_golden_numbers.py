"""The sampler against the public numbers, and its invariants."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.support.golden_inputs import fill, integers, relative_error, tensor
from tests.support.places import GOLDEN
from tests.support.reference_sampler import ReferenceSampler, plain_arguments
from training.model import ACEStepTransformer2DModel
from training.sampling import Sampler, SamplingError, SamplingOptions
from training.sampling.guidance import Interval, ProjectedGuidance, classifier_free, doubly_guided, zero_star
from training.sampling.noise import SeededNoise, mixture
from training.sampling.schedules import chosen_grid, sigma_grid
from training.sampling.solvers import Euler, Heun

PUBLIC = json.loads((GOLDEN / "sampler_public.json").read_text())
CASES = PUBLIC["cases"]
SOURCE_FRAMES = 40


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(fill(ACEStepTransformer2DModel.from_config(PUBLIC["config"])))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "sampler_public.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_public_sampler(sampler, golden, case):
    latents = ReferenceSampler(sampler.transformer).generate_latents(**_asked(case))
    assert latents.shape == golden[case].shape
    assert relative_error(latents, golden[case]) < 1e-4


@pytest.mark.parametrize("case", [case for case in CASES if "extend" not in case and "batch" not in case])
def test_one_song_that_is_not_extended_is_the_references_without_its_quirks(sampler, golden, case):
    assert relative_error(sampler.generate_latents(**_asked(case)), golden[case]) < 1e-4


@pytest.mark.parametrize("scheduler", ["euler", "heun", "pingpong"])
def test_a_batch_gives_each_song_what_it_gets_alone(sampler, scheduler):
    asked = {**_asked("batch2"), "scheduler_type": scheduler, "seeds": [3, 4], "retake_seeds": [5, 6]}
    together = sampler.generate_latents(**asked)
    for item in range(2):
        alone = {name: _item(value, item) for name, value in asked.items()}
        assert relative_error(together[item : item + 1], sampler.generate_latents(**alone)) < 1e-5


def test_padding_of_a_neighbour_changes_nothing(sampler):
    alone = _asked("euler_apg") | {"seeds": [3]}
    text, lyrics = alone["text"], alone["lyrics"]
    longer = tensor("longer", 1, 9, 20)
    padded = alone | {
        "text": torch.cat([torch.nn.functional.pad(text, (0, 0, 0, 3)), longer]),
        "text_mask": torch.tensor([[1.0] * 6 + [0] * 3, [1.0] * 9]),
        "text_null": torch.zeros(2, 9, 20),
        "speaker": torch.zeros(2, 12),
        "lyrics": torch.cat([torch.nn.functional.pad(lyrics, (0, 4)), integers("longer.lyrics", 1, 60, 1, 13)]),
        "lyric_mask": torch.tensor([[1.0] * 9 + [0] * 4, [1.0] * 13]),
        "seeds": [3, 8],
    }
    assert relative_error(sampler.generate_latents(**padded)[:1], sampler.generate_latents(**alone)) < 1e-5


def test_repaint_keeps_the_source_outside_the_window(sampler):
    asked = _asked("repaint")
    repainted, source = sampler.generate_latents(**asked), asked["source"]
    inside = slice(int(1.0 * 44100 / 4096), int(2.0 * 44100 / 4096))
    changed = (repainted - source).abs().amax((0, 1, 2)) > 1e-6
    assert changed[inside].all()
    assert changed.sum() == inside.stop - inside.start


@pytest.mark.parametrize(("left", "right"), [(0.8, 0), (0, 1.5), (0.8, 1.5), (9.0, 8.0)])
def test_extend_keeps_the_source_between_the_new_frames(sampler, left, right):
    source = tensor("src", 1, 8, 16, SOURCE_FRAMES)
    extended = sampler.generate_latents(
        **_song("euler_apg"), task="extend", infer_steps=4, extend_left=left, extend_right=right, source=source
    )
    before, after = int(left * 44100 / 4096), int(right * 44100 / 4096)
    assert extended.shape[-1] == before + SOURCE_FRAMES + after
    torch.testing.assert_close(extended[..., before : before + SOURCE_FRAMES], source)
    assert extended.isfinite().all()


@pytest.mark.parametrize(("left", "right"), [(0, 5), (5, 0), (3, 4)])
def test_a_long_source_is_extended_within_the_longest_song_the_model_knows(sampler, left, right):
    frames, widths = 2600, []
    source = tensor("long", 1, 8, 16, frames)
    extended = sampler.generate_latents(
        **_song("euler_apg"),
        task="extend",
        infer_steps=1,
        guidance_scale=1.0,
        extend_left=left,
        extend_right=right,
        source=source,
        on_step=lambda step: widths.append(step.latents.shape[-1]),
    )
    before = int(left * 44100 / 4096)
    assert max(widths) == int(240 * 44100 / 4096)
    assert len(widths) == (2 if left and right else 1)
    torch.testing.assert_close(extended[..., before : before + frames], source)


def test_retake_without_variance_is_the_song_itself(sampler):
    song = _song("euler_apg") | {"duration": 3.0, "infer_steps": 3, "seeds": [7]}
    again = sampler.generate_latents(**song, task="retake", retake_variance=0.0)
    torch.testing.assert_close(again, sampler.generate_latents(**song, task="text2music"))
    other = sampler.generate_latents(**song, task="retake", retake_variance=1.0, retake_seeds=[8])
    torch.testing.assert_close(other, sampler.generate_latents(**song | {"seeds": [8]}, task="text2music"))


def test_repaint_without_variance_is_the_source(sampler):
    source = tensor("src", 1, 8, 16, SOURCE_FRAMES)
    same = sampler.generate_latents(**_song("euler_apg"), task="repaint", retake_variance=0.0, source=source)
    torch.testing.assert_close(same, source)


def test_an_edit_to_the_same_conditions_with_all_steps_skipped_is_the_source(sampler):
    asked = _asked("flow_edit") | {"n_min": 1.0}
    torch.testing.assert_close(sampler.generate_latents(**asked), asked["source"])


@pytest.mark.parametrize(
    "case", ["euler_apg", "heun_apg", "repaint", "extend_right", "audio2audio", "flow_edit_window"]
)
def test_every_step_is_reported(sampler, case):
    steps = []
    latents = sampler.generate_latents(**_asked(case), on_step=steps.append)
    assert [step.index for step in steps] == list(range(1, len(steps) + 1))
    assert {step.steps for step in steps} == {len(steps)}
    torch.testing.assert_close(steps[-1].latents, latents)


def test_the_unguided_run_evaluates_the_conditional_branch_alone(sampler, monkeypatch):
    batches = []
    original = sampler.transformer.velocity

    def velocity(x: Tensor, *args, **kwargs) -> Tensor:
        batches.append(len(x))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(sampler.transformer, "velocity", velocity)
    sampler.generate_latents(**_song("euler_apg"), duration=2.0, infer_steps=6, guidance_interval=0.5)
    assert batches == [1, 2, 2, 2, 1, 1]  # 1.5 .. 4.5 of 6, both ends rounded down
    batches.clear()
    sampler.generate_latents(**_song("euler_apg"), duration=2.0, infer_steps=3, guidance_scale=1.0)
    assert batches == [1, 1, 1]


@pytest.mark.parametrize("task", ["text2music", "repaint", "audio2audio"])
def test_bfloat16_stays_near_float32(sampler, task):
    song = _song("euler_apg") | {"task": task, "duration": 3.0, "infer_steps": 6, "guidance_scale": 5.0}
    if task != "text2music":
        song["source"] = tensor("src", 1, 8, 16, SOURCE_FRAMES)
    half = Sampler(fill(ACEStepTransformer2DModel.from_config(PUBLIC["config"])).to(torch.bfloat16))
    full, rounded = sampler.generate_latents(**song), half.generate_latents(**song)
    assert rounded.dtype == torch.float32
    assert ((rounded - full).norm() / full.norm()).item() < 0.03


@given(steps=st.integers(1, 200), start=st.floats(0.05, 1.0))
def test_sigmas_fall_to_zero(steps, start):
    sigmas = sigma_grid(steps, start)
    assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    assert sigmas[0] <= 1


@given(st.sets(st.integers(1, 60), min_size=1))
def test_chosen_steps_fall_to_zero(indices):
    sigmas = chosen_grid(sorted(indices))
    assert len(sigmas) == len(indices) + 1
    assert (sigmas.diff() < 0).all()


def test_solvers_follow_a_straight_flow_exactly():
    x, target, omega = tensor("x", 2, 8, 16, 5), tensor("target", 2, 8, 16, 5), 0.0  # omega 0 is a damping of 1
    sigmas = sigma_grid(5).tolist()
    for solver in (Euler(omega), Heun(omega)):
        *_, found = solver(x, sigmas, lambda latents, index, sigma: (latents - target) / sigma)
        torch.testing.assert_close(found, target, atol=1e-4, rtol=1e-4)


def test_guidance_of_equal_velocities_is_that_velocity():
    v = tensor("v", 2, 8, 16, 7)
    for guide in (ProjectedGuidance(), classifier_free, zero_star):
        torch.testing.assert_close(guide(v, v, 7.0), v, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(doubly_guided(v, v, v, 5.0, 1.5), v, atol=1e-5, rtol=1e-4)


def test_projected_guidance_leaves_the_component_along_the_conditional_velocity_alone():
    conditional, unconditional = tensor("c", 1, 8, 16, 7), tensor("u", 1, 8, 16, 7)
    added = ProjectedGuidance()(conditional, unconditional, 9.0) - conditional
    assert (added * conditional).sum((-2, -1)).abs().max() < 1e-3
    assert added.norm(dim=(-2, -1)).max() <= 8 * 2.5 + 1e-3  # scale - 1 times the limit of the norm


@given(
    steps=st.integers(1, 100),
    interval=st.floats(0, 1),
    decay=st.floats(0, 1),
    scale=st.floats(1, 20),
    least=st.floats(0, 1),
)
def test_the_guidance_scale_falls_within_its_interval(steps, interval, decay, scale, least):
    found = Interval.of(
        SamplingOptions(
            guidance_interval=interval,
            guidance_interval_decay=decay,
            guidance_scale=scale,
            min_guidance_scale=least,
        ),
        steps,
    )
    guided = [index for index in range(steps) if index in found]
    scales = [found.scale_at(index) for index in guided]
    assert scales == sorted(scales, reverse=True)
    assert all(least - 1e-6 <= value <= scale + 1e-6 for value in scales)
    assert len(guided) <= steps * interval + 1


@given(st.floats(0, 1))
def test_mixed_noise_has_unit_variance(variance):
    noise = SeededNoise([1], (8, 16), torch.device("cpu")).draw(200)
    other = SeededNoise([2], (8, 16), torch.device("cpu")).draw(200)
    assert abs(mixture(noise, other, variance).std().item() - 1) < 0.03


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"infer_steps": 0}, "infer_steps"),
        ({"duration": 0.5}, "duration"),
        ({"duration": 601}, "duration"),
        ({"scheduler_type": "dpm"}, "scheduler_type"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"oss_steps": [3, 2]}, "oss_steps"),
        ({"n_min": 0.8, "n_max": 0.2}, "n_min"),
        ({"repaint_start": 2.0, "repaint_end": 1.0}, "repaint_end"),
        ({"task": "audio2audio", "ref_audio_strength": 1.0}, "strength"),
        ({"stepz": 3}, "stepz"),
    ],
)
def test_options_out_of_range_are_named(asked, said):
    with pytest.raises(ValidationError, match=said):
        SamplingOptions(**asked)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"task": "repaint"}, "takes|starts from a song"),
        ({"task": "text2music", "source": True}, "takes no source"),
        ({"task": "edit", "source": True}, "target_prompt"),
        (
            {"task": "repaint", "source": True, "repaint_start": 3.0, "repaint_end": 9.0},
            "3..9 s lies outside.*3.7",
        ),
        ({"task": "repaint", "source": True, "repaint_start": -1.0, "repaint_end": 2.0}, "task extend"),
        ({"task": "repaint", "source": True, "repaint_start": 1.0, "repaint_end": 1.01}, "no latent frame"),
        ({"task": "extend", "source": True}, "nothing to extend"),
        ({"task": "extend", "source": True, "extend_right": 300.0}, "at most 120 s"),
        ({"seeds": [1, 2]}, "2 seeds"),
        ({"speaker": torch.zeros(1, 7)}, "speaker|7"),
    ],
)
def test_what_does_not_fit_together_is_named(sampler, asked, said):
    if "source" in asked:
        asked = asked | {"source": tensor("src", 1, 8, 16, SOURCE_FRAMES)}
    with pytest.raises(SamplingError, match=said):
        sampler.generate_latents(**_song("euler_apg") | {"infer_steps": 2, "duration": 1.0} | asked)


def _song(case: str, songs: int = 1) -> dict[str, Tensor]:
    name = f"pub.{case}"
    return {
        "text": tensor(f"{name}.text", songs, 6, 20),
        "text_mask": torch.ones(songs, 6),
        "text_null": tensor(f"{name}.text_null", songs, 6, 20),
        "speaker": torch.zeros(songs, 12),
        "lyrics": integers(f"{name}.lyrics", 1, 60, songs, 9),
        "lyric_mask": torch.ones(songs, 9),
    }


def _asked(case: str) -> dict:
    """A public case as arguments of `generate_latents`."""
    case_options = CASES[case]
    if case.startswith("flow_edit"):
        source, target = _song("edit.source"), _song("edit.target")
        del source["text_null"], target["text_null"]
        targets = {f"target_{name}": value for name, value in target.items()}
        latents = {"src_latents": tensor("pub.edit.src", 1, 8, 16, SOURCE_FRAMES)}
        return plain_arguments(case_options | source | targets | latents)
    sources = {
        name: tensor(f"pub.{case}.src", 1, 8, 16, SOURCE_FRAMES)
        for name in ("src_latents", "ref_latents")
        if name in case_options
    }
    return plain_arguments(case_options | _song(case, case_options.get("B", 1)) | sources)


def _item(value, item: int):
    """The share of one song of a batch in an argument."""
    if isinstance(value, Tensor):
        return value[item : item + 1]
    return [value[item]] if isinstance(value, list) and len(value) == 2 else value
