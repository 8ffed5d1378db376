"""The training loss: the public numbers, and what must hold of noise levels, dropouts and alignment."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schemas import ssl_codec
from stages.nets.codec.codec import LATENT_HZ
from tests.support.golden_inputs import fill, integers, mask, tensor
from tests.support.places import GOLDEN
from training.data.batch import Batch
from training.dit.objective import (
    Objective,
    ObjectiveConfig,
    draw_sigmas,
    drop_conditions,
    pooled_alignment_loss,
    training_sigmas,
)
from training.model import ACEStepTransformer2DModel
from training.model.repa import alignment_loss

PUBLIC = json.loads((GOLDEN / "loss_public.json").read_text())
CONFIG = PUBLIC["config"]


@pytest.fixture(scope="module")
def transformer() -> ACEStepTransformer2DModel:
    return fill(ACEStepTransformer2DModel.from_config(CONFIG))


def _batch() -> Batch:
    """The batch of the public numbers."""
    return Batch(
        latents=tensor("loss.pub.latents", 3, 8, 16, 36),
        frame_mask=mask([36, 36, 25]).bool(),
        text=tensor("loss.pub.text", 3, 6, 20),
        text_mask=torch.ones(3, 6, dtype=torch.bool),
        speaker=tensor("loss.pub.speaker", 3, 12),
        lyrics=integers("loss.pub.lyrics", 0, 60, 3, 9),
        lyric_mask=torch.ones(3, 9, dtype=torch.bool),
        ssl={
            "mert": [tensor(f"loss.pub.ssl0.{song}", 50, 24) for song in range(3)],
            "m-hubert": [tensor(f"loss.pub.ssl1.{song}", 60, 16) for song in range(3)],
        },
        ssl_rate_hz={"mert": 75.0, "m-hubert": 50.0},
        track_ids=["a", "b", "c"],
        seconds=9.0,
    )


def test_equals_the_public_loss(transformer):
    sigmas, noise = torch.tensor(PUBLIC["sigmas"]), tensor("loss.pub.noise", 3, 8, 16, 36)
    losses = Objective(compat=True).at(transformer, _batch(), sigmas, noise)
    assert losses.denoising.item() == pytest.approx(PUBLIC["denoising_loss"], rel=1e-4)
    assert [loss.item() for loss in losses.alignment.values()] == pytest.approx(PUBLIC["proj_losses"], rel=1e-4)
    assert losses.total.item() == pytest.approx(PUBLIC["loss"], rel=1e-4)


def test_the_training_grid_is_the_public_one():
    sigmas = training_sigmas()
    assert (sigmas[:5] * 1000).tolist() == pytest.approx(PUBLIC["schedule_head"], rel=1e-5)
    assert (sigmas[-5:] * 1000).tolist() == pytest.approx(PUBLIC["schedule_tail"], rel=1e-5)
    assert sigmas[PUBLIC["indices"]].tolist() == pytest.approx(PUBLIC["sigmas"], rel=1e-5)


def test_a_padded_song_has_the_loss_it_has_alone(transformer):
    sigmas, noise = torch.tensor(PUBLIC["sigmas"]), tensor("loss.pub.noise", 3, 8, 16, 36)
    batch = _batch()
    together = Objective().at(transformer, batch, sigmas, noise).per_song[2]
    short = slice(0, 25)
    alone = replace(
        batch,
        latents=batch.latents[2:, ..., short],
        frame_mask=batch.frame_mask[2:, short],
        text=batch.text[2:],
        text_mask=batch.text_mask[2:],
        speaker=batch.speaker[2:],
        lyrics=batch.lyrics[2:],
        lyric_mask=batch.lyric_mask[2:],
        ssl={},
    )
    by_itself = Objective().at(transformer, alone, sigmas[2:], noise[2:, ..., short]).per_song[0]
    torch.testing.assert_close(together, by_itself, rtol=1e-4, atol=1e-5)


def test_the_same_generator_gives_the_same_loss(transformer):
    first, again, other = (
        Objective()(transformer, _batch(), torch.Generator().manual_seed(seed)).total for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_weights_of_the_encoders_count(transformer):
    sigmas, noise = torch.tensor(PUBLIC["sigmas"]), tensor("loss.pub.noise", 3, 8, 16, 36)
    losses = Objective(ObjectiveConfig(ssl_weights={"m-hubert": 0.01})).at(transformer, _batch(), sigmas, noise)
    expected = losses.denoising + (losses.alignment["mert"] + 0.01 * losses.alignment["m-hubert"]) / 2
    torch.testing.assert_close(losses.total, expected)


def test_min_snr_weighs_noise_less_and_no_level_above_gamma(transformer):
    noise, batch = tensor("loss.pub.noise", 3, 8, 16, 36), replace(_batch(), ssl={})
    objective = Objective(ObjectiveConfig(weighting="min_snr", min_snr_gamma=5.0))
    sigmas = torch.tensor([0.9, 0.5, 0.1])
    losses = objective.at(transformer, batch, sigmas, noise)
    weights = torch.tensor([(0.1 / 0.9) ** 2, 1.0, 5.0])
    torch.testing.assert_close(losses.denoising, (losses.per_song * weights).mean())


def test_an_encoder_without_a_head_is_named(transformer):
    batch = replace(_batch(), ssl={"whisper_base": _batch().ssl["mert"]}, ssl_rate_hz={"whisper_base": 50.0})
    with pytest.raises(ValueError, match="whisper_base"):
        Objective().at(transformer, batch, torch.tensor(PUBLIC["sigmas"]), batch.latents)


@pytest.mark.parametrize(("distribution", "middle"), [("logit_normal", 0.5), ("uniform", 0.5)])
def test_noise_levels_are_of_the_grid(distribution, middle):
    sigmas = draw_sigmas(4000, distribution, torch.Generator().manual_seed(0))
    assert set(sigmas.tolist()) <= set(training_sigmas().tolist())
    place = sigmas / (3 - 2 * sigmas)  # the shift undone
    assert place.mean().item() == pytest.approx(middle, abs=0.02)
    assert place.std().item() == pytest.approx({"logit_normal": 0.208, "uniform": 0.289}[distribution], abs=0.01)


def test_conditions_are_dropped_as_often_as_asked_and_independently():
    songs = 6000
    batch = Batch(
        latents=torch.zeros(songs, 1, 1, 1),
        frame_mask=torch.ones(songs, 1, dtype=torch.bool),
        text=torch.ones(songs, 1, 1),
        text_mask=torch.ones(songs, 1, dtype=torch.bool),
        speaker=torch.ones(songs, 1),
        lyrics=torch.ones(songs, 1, dtype=torch.int64),
        lyric_mask=torch.ones(songs, 1, dtype=torch.bool),
        ssl={},
        ssl_rate_hz={},
        track_ids=[""] * songs,
        seconds=0.0,
    )
    dropped = drop_conditions(batch, ObjectiveConfig(), torch.Generator().manual_seed(0))
    text, lyrics, speaker = (1 - kept.float().flatten() for kept in (dropped.text, dropped.lyrics, dropped.speaker))
    by_itself = {"text": 0.15, "lyrics": 0.15, "speaker": 0.5}
    for gone, share in zip((text, lyrics, speaker), by_itself.values(), strict=True):
        assert gone.mean().item() == pytest.approx(share + 0.15 - share * 0.15, abs=0.02)
    nothing_left = (text * lyrics * speaker).mean().item()
    assert nothing_left == pytest.approx(0.15 + 0.85 * 0.15 * 0.15 * 0.5, abs=0.02)
    assert dropped.text_mask.all()
    assert torch.equal(dropped.lyric_mask.flatten().float(), 1 - lyrics)


@given(st.integers(2, 30), st.integers(0, 2**31))
def test_pooled_targets_keep_the_loss_of_the_native_ones(frames, seed):
    """For a projection held over each latent frame the two are the same number."""
    generator = torch.Generator().manual_seed(seed)
    per_frame = 5
    native = torch.nn.functional.normalize(torch.randn(frames * per_frame, 12, generator=generator), dim=-1)
    pooled = torch.from_numpy(ssl_codec.pool(native.numpy(), LATENT_HZ * per_frame, frames, LATENT_HZ))
    projected = torch.randn(1, frames, 12, generator=generator)
    held = projected.repeat_interleave(per_frame, 1)
    whole = torch.ones(1, frames, dtype=torch.bool)
    torch.testing.assert_close(
        pooled_alignment_loss(projected, [pooled], whole), alignment_loss(held, [native], None), rtol=1e-4, atol=1e-5
    )
