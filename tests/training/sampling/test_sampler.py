"""Songs from prompts and from songs, of a small random checkpoint in the released layout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.text.bpe import BUILT_IN
from tests.support.tiny_checkpoint import build, codec, transformer
from training.checkpoints.released_layout import load_checkpoint, save_checkpoint
from training.sampling import Clip, Sampler, SamplingError
from training.sampling.audio import write_audio

RATE_HZ = 48_000
LATENT_HZ = 44_100 / 4096
QUICK = {"infer_steps": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def sampler(checkpoint) -> Sampler:
    return Sampler.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def song(tmp_path_factory) -> Path:
    """3.3 s of two tones under noise."""
    seconds = np.arange(int(3.3 * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(0).standard_normal((2, len(seconds))) * 0.02
    tones = 0.3 * np.sin(2 * np.pi * np.array([[220.0], [330.0]]) * seconds)
    path = tmp_path_factory.mktemp("source") / "song.wav"
    write_audio(path, torch.from_numpy((tones + noise).astype(np.float32)), RATE_HZ)
    return path


@pytest.mark.parametrize("duration", [1.0, 2.5])
def test_a_song_lasts_as_long_as_asked(sampler, duration):
    [clip] = sampler.generate("pop, guitar", lyrics="[verse]\nneon lights", duration=duration, **QUICK)
    assert clip.waveform.shape == (2, duration * RATE_HZ)
    assert clip.waveform.isfinite().all()
    assert clip.waveform.std() > 0


def test_the_same_seed_gives_the_same_song_and_another_another(sampler):
    first, again, other = (sampler.generate("pop", duration=1.0, seeds=seed, **QUICK)[0] for seed in (1, 1, 2))
    assert torch.equal(first.waveform, again.waveform)
    assert _distance(first, other) > 0.5


def test_a_seed_that_was_drawn_is_reported(sampler):
    [drawn] = sampler.generate("pop", duration=1.0, **QUICK)
    [again] = sampler.generate("pop", duration=1.0, seeds=drawn.seed, retake_seeds=drawn.retake_seed, **QUICK)
    assert torch.equal(drawn.waveform, again.waveform)


def test_a_batch_of_prompts_gives_each_what_it_gets_alone(sampler):
    prompts = ["pop", "a slow and very long ballad with strings, piano and a choir"]
    lyrics = ["[verse]\nneon lights", "[verse]\nla la la la la la la\n[chorus]\nla la la"]
    together = sampler.generate(prompts, lyrics=lyrics, duration=1.5, seeds=[4, 9], **QUICK)
    for clip, prompt, text, seed in zip(together, prompts, lyrics, (4, 9), strict=True):
        [alone] = sampler.generate(prompt, lyrics=text, duration=1.5, seeds=seed, **QUICK)
        assert _distance(clip, alone) < 1e-4


@pytest.mark.parametrize(
    ("asked", "longer_s"),
    [
        ({"task": "repaint", "repaint_start": 1.0, "repaint_end": 2.0}, 0),
        ({"task": "extend", "extend_left": 1.0, "extend_right": 2.0}, (10 + 21) / LATENT_HZ),
        ({"task": "audio2audio", "ref_audio_strength": 0.3}, 0),
        ({"task": "edit", "target_prompt": "metal"}, 0),
    ],
    ids=lambda asked: asked["task"] if isinstance(asked, dict) else "",
)
def test_a_task_on_a_song_keeps_its_length(sampler, song, asked, longer_s):
    [clip] = sampler.generate("pop", source=song, seeds=1, retake_seeds=2, **QUICK, **asked)
    assert abs(clip.waveform.shape[1] / RATE_HZ - 3.3 - longer_s) < 1e-4
    assert clip.waveform.isfinite().all()


def test_a_repaint_keeps_the_latents_outside_its_window(sampler, song):
    [clip] = sampler.generate("pop", source=song, task="repaint", repaint_start=1.0, repaint_end=2.0, **QUICK)
    [same] = sampler.generate("pop", source=song, task="repaint", retake_variance=0.0, **QUICK)
    changed = (clip.latents - same.latents).abs().amax((0, 1)) > 1e-5
    assert changed.nonzero().flatten().tolist() == list(range(int(1.0 * LATENT_HZ), int(2.0 * LATENT_HZ)))


def test_the_prompt_the_lyrics_and_the_voice_matter(sampler):
    asked = {"duration": 1.0, "seeds": 1, **QUICK}
    [plain] = sampler.generate("pop", **asked)
    for other in (
        sampler.generate("metal", **asked),
        sampler.generate("pop", lyrics="[verse]\nneon lights", **asked),
        sampler.generate("pop", speaker=torch.ones(sampler.transformer.config["speaker_embedding_dim"]), **asked),
    ):
        assert _distance(other[0], plain) > 1e-3


def test_warming_up_changes_no_song(sampler):
    [before] = sampler.generate("pop", duration=1.0, seeds=1, **QUICK)
    sampler.warm_up()
    [after] = sampler.generate("pop", duration=1.0, seeds=1, **QUICK)
    assert torch.equal(before.waveform, after.waveform)


def test_offloading_moves_a_model_to_work_and_back(checkpoint, monkeypatch):
    moves = []
    loaded = load_checkpoint(checkpoint)
    whole = Sampler.from_pretrained(checkpoint, offload=True)
    for name, model in (("transformer", whole.transformer), ("codec", whole.codec)):
        monkeypatch.setattr(model, "to", lambda device, name=name: moves.append((name, str(device))))
    [clip] = whole.generate("pop", duration=1.0, seeds=1, **QUICK)
    assert moves == [("transformer", "cpu"), ("transformer", "cpu"), ("codec", "cpu"), ("codec", "cpu")]
    plain = Sampler(loaded.transformer, loaded.codec, whole.text_encoder, whole.vocabulary)
    assert torch.equal(clip.waveform, plain.generate("pop", duration=1.0, seeds=1, **QUICK)[0].waveform)


def test_int8_weights_are_near_the_full_ones(tmp_path):
    folder = tmp_path / "wide"
    wide = transformer(lyric_hidden_size=256)  # its feed-forward layers are large enough to be worth it
    save_checkpoint(folder, transformer=wide, codec=codec(), vocabulary=BUILT_IN)
    encoder = build(tmp_path / "tiny") / "umt5-base"
    asked = {"lyrics": "[verse]\nneon lights", "duration": 1.0, "seeds": 1, "guidance_scale": 1.0, **QUICK}
    whole, small = (
        Sampler.from_pretrained(folder, text_encoder=encoder, int8=int8).generate("pop", **asked)[0]
        for int8 in (False, True)
    )
    assert 0 < _distance(small, whole) < 0.01


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"task": "repaint"}, "source"),
        ({"source": "song"}, "takes no source"),
        ({"task": "edit", "source": "song"}, "target_prompt"),
        ({"target_prompt": "metal"}, "choose edit"),
        ({"task": "edit", "source": "song", "target_prompt": ["a", "b", "c"]}, "3 target prompts for 1"),
        ({"task": "repaint", "source": "song", "repaint_start": 2.0, "repaint_end": 60.0}, "2..60 s lies outside"),
        ({"task": "repaint", "source": "missing.wav"}, "missing.wav"),
        ({"seeds": [1, 2]}, "2 seeds for 1"),
        ({"language": "tlh", "lyrics": "nuqneH"}, "tlh"),
        ({"lyrics": "la la la la\n" * 2000}, "4096"),
    ],
)
def test_what_cannot_be_sampled_is_named(sampler, song, asked, said):
    if asked.get("source") == "song":
        asked = asked | {"source": song}
    with pytest.raises(SamplingError, match=said):
        sampler.generate("pop", duration=1.0, **QUICK, **asked)


def test_a_vocabulary_or_text_encoder_of_another_model_is_refused(sampler, checkpoint, tmp_path):
    (tmp_path / "vocabulary.json").write_text("{}")
    with pytest.raises(SamplingError, match="vocabulary"):
        Sampler.from_pretrained(checkpoint, vocabulary=tmp_path / "vocabulary.json")
    with pytest.raises(SamplingError, match="no text encoder"):
        Sampler.from_pretrained(checkpoint, text_encoder=tmp_path)

    class Wider:
        dim = sampler.transformer.config["text_embedding_dim"] + 1

    with pytest.raises(SamplingError, match="text encoder that it was trained with"):
        Sampler(sampler.transformer, text_encoder=Wider())


def _distance(clip: Clip, other: Clip) -> float:
    """Of the latents: a random decoder hardly tells songs apart."""
    return ((clip.latents - other.latents).norm() / other.latents.norm()).item()
