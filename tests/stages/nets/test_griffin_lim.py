"""The vocoder without weights, on real recordings: what it makes has the bands it was given."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from torch import Tensor

from stages.nets.codec.codec import HOP, SAMPLES_PER_FRAME
from stages.nets.codec.windows import windowed
from stages.nets.dcae import LatentEncoder
from tests.support import tiny_checkpoint
from tests.support.tracks import load
from training.checkpoints.released_layout import (
    CheckpointProblem,
    load_checkpoint,
    load_codec,
    save_checkpoint,
    save_codec,
)
from training.model import GriffinLim, MusicDCAE

SECONDS = 5.0
ONE_DECIBEL = 0.115  # in natural logarithms of magnitudes


@pytest.fixture(scope="module")
def vocoder() -> GriffinLim:
    return GriffinLim()


@pytest.fixture(scope="module", params=["calm_acoustic_1", "energetic_electronic_2"])
def recording(request: pytest.FixtureRequest, audio) -> Tensor:
    song = load(audio("demo-music", f"{request.param}.opus"), SECONDS, start_s=8.0)
    return torch.from_numpy(song[:, : song.shape[1] // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].copy())


@pytest.fixture(scope="module")
def codec() -> MusicDCAE:
    """A random autoencoder with this vocoder."""
    return MusicDCAE.from_parts(tiny_checkpoint.codec().autoencoder, GriffinLim(iterations=4)).eval()


def error(vocoder: GriffinLim, waveform: Tensor, mel: Tensor) -> float:
    """Mean difference of log-mel bands, of the frames that do not see the edges."""
    return (vocoder.encode(waveform) - mel).abs()[..., 2:-2].mean().item()


def test_heard_again_it_has_the_bands_it_was_made_of(vocoder: GriffinLim, recording: Tensor) -> None:
    mel = vocoder.encode(recording)
    made = vocoder.decode(mel)
    assert made.shape == (2, mel.shape[-1] * HOP)
    assert error(vocoder, made, mel) < ONE_DECIBEL
    # The same magnitudes with the phases it began with are nowhere near, and noise of the same long-term spectrum
    # is further off still: neither the bands nor the average alone pass.
    assert error(GriffinLim(iterations=0), GriffinLim(iterations=0).decode(mel), mel) > 5 * ONE_DECIBEL
    spectrum = torch.fft.rfft(recording).abs()
    turned = torch.polar(spectrum, 2 * torch.pi * torch.rand(spectrum.shape, generator=torch.manual_seed(1)))
    assert error(vocoder, torch.fft.irfft(turned, recording.shape[1]), mel) > 6 * ONE_DECIBEL


def test_momentum_comes_nearer_in_as_many_iterations(vocoder: GriffinLim, recording: Tensor) -> None:
    mel = vocoder.encode(recording)
    plain = GriffinLim(momentum=0.0)
    assert error(vocoder, vocoder.decode(mel), mel) < 0.9 * error(plain, plain.decode(mel), mel)


def test_magnitudes_have_the_bands(vocoder: GriffinLim, recording: Tensor) -> None:
    mel = vocoder.encode(recording)
    magnitudes = (vocoder._magnitudes(mel.exp()).square() + 1e-6).sqrt()
    assert (vocoder.mel_transform.mel_scale(magnitudes).log() - mel).abs().mean() < 0.01


def test_the_inverse_of_a_spectrum_is_the_waveform(vocoder: GriffinLim, recording: Tensor) -> None:
    stft = vocoder.mel_transform.spectrogram
    again = stft.inverse(stft.spectrum(recording))
    torch.testing.assert_close(again, recording, atol=1e-5, rtol=0)


def test_equal_channels_stay_equal_and_others_apart(recording: Tensor) -> None:
    vocoder = GriffinLim(iterations=3)
    left, right = recording[:, : 40 * HOP]
    made = vocoder.decode(vocoder.encode(torch.stack([left, left, right])))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made, vocoder.decode(vocoder.encode(torch.stack([left, left, right]))))
    alone = vocoder.decode(vocoder.encode(right[None]))[0]
    torch.testing.assert_close(made[2], alone, atol=1e-3, rtol=0)
    assert (made[0] - made[2]).abs().max() > 0.01


def test_silence_stays_silence(vocoder: GriffinLim) -> None:
    made = vocoder.decode(vocoder.encode(torch.zeros(1, 16 * HOP)))
    assert made.abs().max() < 1e-4
    floor = torch.full((1, 128, 16), -30.0)
    assert vocoder.decode(floor).abs().max() == 0


def test_windows_meet_within_their_fade(vocoder: GriffinLim, recording: Tensor) -> None:
    mel = vocoder.encode(recording)
    made = windowed(vocoder.decode, mel, window=128, reach=vocoder.reach, fade=8)
    assert made.shape == recording.shape
    off = (vocoder.encode(made) - mel).abs().mean((0, 1))
    seams = [frame for seam in range(128, len(off), 128) for frame in range(seam - 12, seam + 4)]
    assert off[seams].max() < 6 * ONE_DECIBEL
    rest = torch.ones(len(off), dtype=torch.bool)
    rest[seams] = False
    assert off[rest][2:-2].mean() < ONE_DECIBEL


def test_a_codec_with_it_is_saved_loaded_and_listens_as_before(codec: MusicDCAE, recording: Tensor, tmp_path) -> None:
    save_codec(tmp_path / "codec", codec)
    assert [file.name for file in (tmp_path / "codec" / "music_vocoder").iterdir()] == ["config.json"]
    again = load_codec(tmp_path / "codec")
    assert isinstance(again.vocoder, GriffinLim)
    assert again.vocoder.config["iterations"] == 4
    latents, _ = codec.encode(recording[None, :, : 8 * SAMPLES_PER_FRAME], 44_100)
    assert torch.equal(again.encode(recording[None, :, : 8 * SAMPLES_PER_FRAME], 44_100)[0], latents)
    assert torch.equal(again.decode(latents), codec.decode(latents))
    stage = LatentEncoder.load(tmp_path / "codec" / "music_dcae_f8c8", tmp_path / "codec" / "music_vocoder")
    heard = torch.from_numpy(stage(recording[:, : 8 * SAMPLES_PER_FRAME].numpy()).astype("float32"))
    torch.testing.assert_close(heard.permute(1, 2, 0), latents[0], atol=2e-3, rtol=0)


def test_a_whole_checkpoint_with_it_is_loaded(codec: MusicDCAE, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "all", transformer=tiny_checkpoint.transformer(), codec=codec)
    half = load_checkpoint(tmp_path / "all", torch.bfloat16).codec
    made = half.decode(torch.zeros(1, 8, 16, 4))
    assert made.shape == (1, 2, -(-4 * SAMPLES_PER_FRAME * 48_000 // 44_100))
    assert made.isfinite().all()


def test_the_codec_as_one_model_keeps_its_kind_of_vocoder(codec: MusicDCAE, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    again = MusicDCAE.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert isinstance(again.vocoder, GriffinLim)
    assert torch.equal(again.decode(torch.ones(1, 8, 16, 4)), codec.decode(torch.ones(1, 8, 16, 4)))


def test_another_scale_than_the_autoencoder_s_is_refused(codec: MusicDCAE, tmp_path: Path) -> None:
    save_codec(tmp_path / "codec", codec)
    config = tmp_path / "codec" / "music_vocoder" / "config.json"
    for name, value, said in (
        ("hop_length", 256, "hop"),
        ("wavelets", 3, "no wavelets"),
        ("_class_name", "V", "or Gr"),
    ):
        stored = json.loads(config.read_text())
        config.write_text(json.dumps(stored | {name: value}))
        with pytest.raises(CheckpointProblem, match=said):
            load_codec(tmp_path / "codec")
        config.write_text(json.dumps(stored))


def test_the_released_autoencoder_takes_it() -> None:
    with torch.device("meta"):
        codec = MusicDCAE(vocoder_class="GriffinLim")
    assert isinstance(codec.autoencoder, AutoencoderDC)
    assert not codec.vocoder.state_dict()
