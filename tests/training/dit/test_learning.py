"""Whether training learns: four real recordings, a small transformer, and whether it gives each back when asked for it.

The latents are a random autoencoder's in the released format: all that is asked of them is to differ as the songs do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.nets.codec.codec import CODEC_HZ, LATENT_HZ, SAMPLES_PER_FRAME
from tests.support.tracks import load
from training.autoencoder.model import StereoMel, build_model
from training.autoencoder.presets import SIZES as AUTOENCODER_SIZES
from training.data.batch import Batch
from training.dit.objective import Objective, ObjectiveConfig
from training.model import ACEStepTransformer2DModel, GriffinLim, MusicDCAE
from training.run.optimizer import OptimizerConfig, build_optimizer, set_learning_rate
from training.sampling import Sampler
from training.sampling.prompts import load_text_encoder

# How each sounds: what one would ask for to get it.
TRACKS = {
    "calm_acoustic_1": "calm acoustic folk, solo guitar, slow",
    "energetic_electronic_2": "energetic techno, synthesizer and drums, fast",
    "happy_acoustic_1": "happy ukulele tune with hand claps",
    "nostalgic_acoustic_s411": "nostalgic piano ballad",
}
FRAMES = 129  # 12 s of each
STEPS, LR = 160, 6e-3
SIZES: dict[str, Any] = {
    "num_layers": 3,
    "inner_dim": 128,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "speaker_embedding_dim": 16,
    "text_embedding_dim": 384,
    "ssl_names": (),
    "ssl_encoder_depths": (),
    "ssl_latent_dims": (),
    "lyric_encoder_vocab_size": 16,
    "lyric_hidden_size": 64,
}


@pytest.fixture(scope="module")
def songs(audio: Callable[[str, str], Path]) -> np.ndarray:
    seconds = (FRAMES * SAMPLES_PER_FRAME + 1) / CODEC_HZ
    return np.stack([load(audio("demo-music", f"{name}.opus"), seconds, start_s=8.0) for name in TRACKS])


@pytest.fixture(scope="module")
def codec(songs: np.ndarray) -> MusicDCAE:
    """A random autoencoder whose latents are brought to unit variance as in training: they hold what the mel holds."""
    torch.manual_seed(0)
    model = build_model(AUTOENCODER_SIZES["tiny"], None)
    with torch.no_grad():
        model.train().encode(StereoMel()(torch.from_numpy(songs)[..., : FRAMES * SAMPLES_PER_FRAME]))
    return MusicDCAE.from_parts(model.eval().finished(), GriffinLim()).eval()


@pytest.fixture(scope="module")
def latents(codec: MusicDCAE, songs: np.ndarray) -> Tensor:
    """[4, 8, 16, FRAMES]."""
    return codec.encode(torch.from_numpy(songs), CODEC_HZ)[0][..., :FRAMES]


@pytest.fixture(scope="module")
def batch(latents: Tensor, weights: Callable[..., dict]) -> Batch:
    text, text_mask = load_text_encoder(weights("e5-small")["e5-small"].path).encode(list(TRACKS.values()))
    songs = len(latents)
    return Batch(
        latents=latents,
        frame_mask=torch.ones(songs, FRAMES, dtype=torch.bool),
        text=text,
        text_mask=text_mask,
        speaker=torch.zeros(songs, SIZES["speaker_embedding_dim"]),
        lyrics=torch.zeros(songs, 1, dtype=torch.int64),
        lyric_mask=torch.zeros(songs, 1, dtype=torch.bool),
        ssl={},
        ssl_rate_hz={},
        track_ids=list(TRACKS),
        seconds=songs * FRAMES / LATENT_HZ,
    )


@pytest.fixture(scope="module")
def distances(batch: Batch) -> tuple[Tensor, Tensor]:
    """Of songs, each sampled by a track's own prompt, to all tracks [songs, tracks], before and after training."""
    transformer = new_transformer()
    before = distance(sampled(transformer, batch), batch.latents)
    overfit(transformer, batch)
    return before, distance(sampled(transformer, batch), batch.latents)


def new_transformer() -> ACEStepTransformer2DModel:
    torch.manual_seed(1)
    transformer = ACEStepTransformer2DModel(**SIZES)
    transformer.lyric_encoder.requires_grad_(False)  # half the weights, and nobody sings
    return transformer


def overfit(transformer: ACEStepTransformer2DModel, batch: Batch) -> None:
    """Trains it on the same songs over and over, and never without their prompts."""
    objective = Objective(ObjectiveConfig(text_dropout=0, condition_dropout=0))
    config = OptimizerConfig(lr=LR, warmup_steps=10, decay="cosine", clip=1.0)
    optimizer = build_optimizer(transformer.parameters(), config)
    generator = torch.Generator().manual_seed(2)
    transformer.train()
    for step in range(STEPS):
        set_learning_rate(optimizer, step, STEPS, config)
        optimizer.zero_grad()
        objective(transformer, batch, generator).total.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), config.clip)
        optimizer.step()


def sampled(transformer: ACEStepTransformer2DModel, batch: Batch) -> Tensor:
    """A song of each track's own prompt, through the sampler, without guidance."""
    return Sampler(transformer).generate_latents(
        text=batch.text,
        text_mask=batch.text_mask,
        lyrics=batch.lyrics,
        lyric_mask=batch.lyric_mask,
        duration=FRAMES / LATENT_HZ,
        infer_steps=30,
        guidance_scale=1.0,
        seeds=3,
    )


def distance(songs: Tensor, tracks: Tensor) -> Tensor:
    """Mean square of the difference, place by place, between each song and each track [songs, tracks].

    The unit is that of the mean value in each channel and bin, constant in time, from a track. So a song comes below 1
    only by what happens at each moment of the track: another song of the same statistics is 2 away.
    """
    spread = (tracks - tracks.mean((0, 3), keepdim=True)).square().mean()
    return (songs[:, None] - tracks[None]).square().mean((2, 3, 4)) / spread


def test_the_distance_is_not_won_by_statistics_nor_by_the_average(latents: Tensor) -> None:
    reversed_in_time = distance(latents.flip(-1), latents).diag()
    assert reversed_in_time.min() > 1.2
    average = distance(latents.mean(0, keepdim=True), latents)[0]
    assert average.mean() == pytest.approx(0.75, abs=0.1)  # below 1: only the comparison of the tracks turns it down
    others = distance(latents, latents)[~torch.eye(len(latents), dtype=torch.bool)]
    assert others.min() > 1.5


def test_sampled_latents_of_a_random_codec_come_near_the_training_latents(distances: tuple[Tensor, Tensor]) -> None:
    before, after = distances
    assert before.min() > 3  # noise
    assert after.diag().max() < 1
    assert (after.diag() < before.diag() / 4).all()


def test_each_prompt_gives_the_track_it_was_trained_with(distances: tuple[Tensor, Tensor]) -> None:
    _, after = distances
    own = after.diag()
    others = after.masked_fill(torch.eye(len(after), dtype=torch.bool), torch.inf)
    assert (own < 0.8 * others.min(1).values).all()  # the song is nearer to its track than to the other tracks
    assert (own < 0.8 * others.min(0).values).all()  # and to the track, nearer than the other prompts' songs
