"""What the sampler does at the ends of its ranges, and with input that is only just wrong."""

import io
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import save_file

from pipeline.errors import UsageProblem
from pipeline.sampling.config import build_config, path_and_scale, resolve
from pipeline.sampling.progress import _bar
from pipeline.sampling.sample import outputs
from stages.nets.codec.codec import LATENT_HZ, SAMPLES_PER_FRAME
from tests.support.audio import tone, write
from tests.support.golden_inputs import tensor
from tests.support.tiny_checkpoint import build_audible
from training.checkpoints.lora import Lora, load_loras, unload
from training.sampling import Sampler, SamplingError, SamplingOptions, Step
from training.sampling.audio import read_audio, write_audio
from training.sampling.guidance import Interval
from training.sampling.solvers import Euler
from training.sampling.window import repaint_window


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_audible(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def sampler(checkpoint: Path) -> Sampler:
    return Sampler.from_pretrained(checkpoint)


def conditions(sampler: Sampler, songs: int = 1) -> dict[str, torch.Tensor]:
    dim = sampler.transformer.config["text_embedding_dim"]
    return {"text": tensor("edges.text", songs, 4, dim), "lyrics": torch.arange(songs * 5).view(songs, 5)}


@pytest.mark.parametrize(("seconds", "whole"), [(2.0, True), (1.96, True), (1.94, False)])
def test_a_window_to_the_end_of_the_song_takes_its_last_frame(seconds: float, whole: bool):
    frames = 22  # of 2 s, the last one filled by half
    window = repaint_window(SamplingOptions(task="repaint", repaint_start=-0.0, repaint_end=seconds), frames)
    assert window.start == 0
    assert (window.stop == frames) == whole


@pytest.mark.parametrize(("start", "end"), [(-0.01, 1.0), (1.0, 2.1), (3.0, None)])
def test_a_window_just_outside_the_song_is_refused(start: float, end: float | None):
    with pytest.raises(SamplingError, match="outside the source"):
        repaint_window(SamplingOptions(task="repaint", repaint_start=start, repaint_end=end), 22)


@pytest.mark.parametrize("task", ["text2music", "repaint"])
def test_guidance_covers_the_middle_of_an_optimal_schedule(
    sampler: Sampler, task: str, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []
    interval_of = Interval.of
    monkeypatch.setattr(Interval, "of", lambda options, steps: asked.append(steps) or interval_of(options, steps))
    source = {"source": tensor("edges.src", 1, 8, 16, 12)} if task == "repaint" else {}
    sampler.generate_latents(**conditions(sampler), **source, task=task, duration=1.0, oss_steps=(1, 3, 7, 16))
    assert asked == [4]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("interval", [0.0, 1.0])
@pytest.mark.parametrize("cfg_type", ["apg", "cfg", "cfg_star"])
def test_the_fewest_steps_give_a_song_or_are_refused(sampler: Sampler, steps: int, interval: float, cfg_type: str):
    asked = {"infer_steps": steps, "guidance_interval": interval, "cfg_type": cfg_type, "guidance_interval_decay": 1.0}
    if cfg_type == "cfg_star" and interval == 1 and steps < 3:
        with pytest.raises(ValidationError, match="stands still"):
            SamplingOptions(**asked)
        return
    seen: list[Step] = []
    latents = sampler.generate_latents(**conditions(sampler), duration=1.0, on_step=seen.append, **asked)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    assert latents.isfinite().all()
    assert not torch.equal(latents, noise)
    assert [step.index for step in seen] == list(range(1, steps + 1))


@pytest.mark.parametrize(
    ("omega", "factor"), [(0.0, 1.0), (1e6, 1.1), (-1e6, 0.9), (10.0, 0.9 + 0.2 / (1 + 1 / torch.e))]
)
def test_any_omega_scales_what_is_about_the_mean(omega: float, factor: float):
    x = tensor("edges.x", 1, 8, 16, 5)
    [moved] = Euler(omega)(torch.zeros_like(x), [1.0, 0.0], lambda *_: x)
    mean = x.mean()
    torch.testing.assert_close(moved, -(mean + factor * (x - mean)))


def test_an_extension_in_two_parts_reports_one_run(sampler: Sampler):
    source = tensor("edges.long", 1, 8, 16, 2560)
    seen: list[Step] = []
    sampler.generate_latents(
        **conditions(sampler),
        task="extend",
        source=source,
        extend_left=2.0,
        extend_right=2.0,
        infer_steps=2,
        on_step=seen.append,
    )
    assert [(step.index, step.steps) for step in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_source_goes_on_to_the_end_of_its_last_frame(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    song = torch.randn(2, 3 * SAMPLES_PER_FRAME + 100, generator=torch.Generator().manual_seed(1)) * 0.1
    write_audio(tmp_path / "song.wav", song, 44_100)
    encoded: list[torch.Tensor] = []
    encode = sampler.codec.encode
    monkeypatch.setattr(
        sampler.codec, "encode", lambda waveform, rate: encoded.append(waveform) or encode(waveform, rate)
    )
    [clip] = sampler.generate("folk", task="audio2audio", source=tmp_path / "song.wav", infer_steps=2, seeds=1)
    [[heard]] = encoded
    assert heard.shape[-1] == 4 * SAMPLES_PER_FRAME
    assert heard[:, -1000:].std() == pytest.approx(0.1, rel=0.1)
    assert clip.waveform.shape[-1] == round(song.shape[-1] / 44_100 * 48_000)


@pytest.mark.parametrize("seconds", [0.001, 0.2])
def test_a_source_shorter_than_a_second_keeps_its_length(sampler: Sampler, tmp_path: Path, seconds: float):
    source = write(tmp_path / "short.wav", tone(440, seconds))
    [clip] = sampler.generate("folk", task="audio2audio", source=source, infer_steps=2, seeds=1)
    assert clip.waveform.shape[-1] / 48_000 == pytest.approx(read_audio(source)[0].shape[-1] / 44_100, abs=1e-4)
    assert clip.waveform.isfinite().all()


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(sampler: Sampler, seed: int):
    with pytest.raises(SamplingError, match=str(seed)):
        sampler.generate("folk", seeds=seed)
    with pytest.raises(SamplingError, match=str(seed)):
        sampler.generate_latents(**conditions(sampler), retake_seeds=[seed])


def test_a_voice_that_is_no_number_is_refused(sampler: Sampler):
    with pytest.raises(SamplingError, match="speaker embedding holds NaN"):
        sampler.generate("folk", speaker=torch.full((16,), torch.nan))


def test_a_lora_of_the_conditions_alone_is_heard_and_unloads(checkpoint: Path, tmp_path: Path):
    sampler = Sampler.from_pretrained(checkpoint)
    layers = ("genre_embedder", "lyric_proj", "lyric_encoder.encoders.4.self_attn.linear_q")
    factors = {}
    for name in layers:
        weight = sampler.transformer.get_submodule(name).weight
        factors[f"{name}.lora_A.weight"] = tensor(f"{name}.A", 2, weight.shape[1])
        factors[f"{name}.lora_B.weight"] = tensor(f"{name}.B", weight.shape[0], 2)
    save_file(factors, tmp_path / "words.safetensors")
    run = {**conditions(sampler), "duration": 1.0, "infer_steps": 4}
    plain = sampler.generate_latents(**run)
    load_loras(sampler.transformer, [Lora(tmp_path / "words.safetensors", "words", 1.0)])
    assert not torch.allclose(sampler.generate_latents(**run), plain, rtol=0, atol=1e-3)
    unload(sampler.transformer, "words")
    assert torch.equal(sampler.generate_latents(**run), plain)


@pytest.mark.parametrize("name", ["take:1.wav", "50%d.flac", "söng 曲.ogg", "http:x.wav"])
def test_any_name_is_a_file_and_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    write_audio(Path(name), torch.full((2, 4800), 0.1))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert read_audio(tmp_path / name)[0].std() < 0.1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": ["a\udcff"]}, "--prompt: must be UTF-8"),
        ({"out": Path("a\udcff.wav")}, "--out: must be UTF-8"),
        ({"lora": [f"{__file__}:nan"]}, "finite number"),
        ({"out": Path("taken.wav")}, "taken.wav is a folder"),
        ({"out": Path("sidecar.wav")}, "sidecar.json is a folder"),
        ({"out": Path("file/x.wav")}, "file: "),
        ({"out": Path(f"{'x' * 251}.wav")}, "File name too long"),
        ({"out": Path("in.wav"), "source": Path("in.wav"), "task": "repaint"}, "would replace the --source"),
        (
            {"out": Path("in.wav"), "source": Path("in-2.wav"), "task": "repaint", "seed": [1, 2]},
            "replace the --source",
        ),
        ({"prompt": ["a", "b", "c"], "lyrics": [Path("in.wav")] * 2}, "--lyrics: 2 for 3 songs"),
        ({"task": "edit", "source": Path("in.wav")}, "give it as --target-prompt"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict, said: str
):
    monkeypatch.chdir(tmp_path)
    for folder in ("taken.wav", "sidecar.json"):
        (tmp_path / folder).mkdir()
    for file in ("file", "in.wav", "in-2.wav"):
        (tmp_path / file).touch()
    settings = {"checkpoint": tmp_path, "prompt": ["folk"], "out": tmp_path / "out.wav", **given}
    with pytest.raises(UsageProblem, match=said):
        outputs(resolve(build_config({}, settings)), overwrite=True)


def test_looking_whether_songs_can_be_written_leaves_nothing(tmp_path: Path):
    outputs(resolve(build_config({}, {"checkpoint": tmp_path, "prompt": "folk", "out": tmp_path / "new" / "a.wav"})))
    assert not any((tmp_path / "new").iterdir())


def test_consecutive_seeds_stay_those_that_a_sidecar_may_record(tmp_path: Path):
    given = {"checkpoint": tmp_path, "prompt": ["a", "b"], "out": tmp_path / "a.wav", "seed": 2**63 - 1}
    config = resolve(build_config({}, given))
    assert build_config(config.model_dump(mode="json"), {}).seed == config.seed == (2**63 - 1, 0)


def test_a_lora_scale_may_be_negative(tmp_path: Path):
    (tmp_path / "a.safetensors").touch()
    assert path_and_scale(f"{tmp_path / 'a.safetensors'}:-0.5")[1] == -0.5


def test_a_phase_of_unknown_length_does_not_keep_the_steps_of_the_one_before():
    screen = io.StringIO()
    with _bar(Console(file=screen, force_terminal=True, width=100)) as watch:
        watch("sampling", 27, 27)
        watch("decoding", 0, 0)
    assert "decoding" in screen.getvalue()
    assert "27" not in screen.getvalue().rpartition("decoding")[2]


def test_what_an_extension_adds_is_as_long_as_asked_to_a_frame(sampler: Sampler, tmp_path: Path):
    source = write(tmp_path / "song.wav", tone(440, 1.5))
    [clip] = sampler.generate("folk", task="extend", source=source, extend_right=1.0, infer_steps=2, seeds=1)
    assert clip.waveform.shape[-1] / 48_000 == pytest.approx(2.5, abs=1 / LATENT_HZ)
