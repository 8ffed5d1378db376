import copy
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.nets.codec.codec import AUTOENCODER, MusicDCAE, latent_length
from stages.nets.codec.resample import resample
from stages.nets.codec.vocoder import ADaMoSHiFiGANV1
from tests.support.golden_inputs import fill, relative_error, tensor
from tests.support.places import GOLDEN

CONFIG = json.loads((GOLDEN / "codec.json").read_text())
MANIFEST = json.loads((GOLDEN / "released_codec_manifest.json").read_text())
TOLERANCE = 1e-4


def filled_vocoder(**config: Any) -> ADaMoSHiFiGANV1:
    """The mel transform keeps its real window and filters."""
    vocoder = ADaMoSHiFiGANV1(**config)
    mel = copy.deepcopy(vocoder.mel_transform.state_dict())
    fill(vocoder).mel_transform.load_state_dict(mel)
    return vocoder.requires_grad_(False)


def new_codec() -> MusicDCAE:
    autoencoder = fill(AutoencoderDC(**CONFIG["autoencoder"])).requires_grad_(False)
    return MusicDCAE.from_parts(autoencoder, filled_vocoder(**CONFIG["vocoder"]))


@pytest.fixture(scope="module")
def codec() -> MusicDCAE:
    return new_codec()


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / "codec_public.npz").items()}


@pytest.fixture(scope="module")
def waveform() -> Tensor:
    time = np.arange(96_000) / 48_000
    hiss = np.random.default_rng(zlib.crc32(b"pub.wav48"))
    left = 0.3 * np.sin(2 * np.pi * (220 + 60 * time) * time) + 0.02 * hiss.standard_normal(96_000)
    right = 0.2 * np.sin(2 * np.pi * 440 * time) * np.exp(-time) + 0.02 * hiss.standard_normal(96_000)
    return torch.from_numpy(np.stack([left, right]).astype(np.float32))[None]


def noise(*shape: int) -> Tensor:
    return tensor("codec.noise", *shape)


def error(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    return relative_error(ours, expected)


def norm_error(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


def test_encodes_what_the_reference_encodes(codec: MusicDCAE, golden: dict[str, Tensor], waveform: Tensor) -> None:
    audio = resample(waveform[0], 48_000, 44_100)
    assert error(codec.vocoder.encode(audio)[None], golden["mel"]) < TOLERANCE
    latents, lengths = codec.encode(waveform)
    assert error(latents, golden["latent"]) < TOLERANCE
    assert torch.equal(lengths, golden["latent_length"])


def test_decodes_what_the_reference_decodes(codec: MusicDCAE, golden: dict[str, Tensor]) -> None:
    latents = tensor("pub.latent", 1, 8, 16, 24)
    assert error(codec.decode_mel(latents), golden["decoded_mel"]) < TOLERANCE
    assert error(codec.decode(latents, sample_rate_hz=44_100)[0], golden["decoded_wav44"]) < TOLERANCE
    assert error(codec.decode(latents)[0], golden["decoded_wav48"]) < TOLERANCE


@pytest.mark.parametrize("part", ["autoencoder", "vocoder"])
def test_released_checkpoints_fit(part: str) -> None:
    with torch.device("meta"):
        model = getattr(MusicDCAE(), part)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == MANIFEST[part]["parameters"]


def test_defaults_are_the_released_configs() -> None:
    assert MANIFEST["autoencoder"]["config"] == AUTOENCODER
    with torch.device("meta"):
        config = ADaMoSHiFiGANV1().config
    released = MANIFEST["vocoder"]["config"]
    assert json.loads(json.dumps({name: config[name] for name in released})) == released


@pytest.mark.parametrize("frames", [1, 2, 70])
def test_windows_give_the_whole(codec: MusicDCAE, frames: int) -> None:
    """The plain models on the whole song are the reference: windows change nothing, at seams and edges neither."""
    latents = noise(1, 8, 16, frames)
    with torch.no_grad():
        mel = codec.autoencoder.decode(latents / 0.1786 - 1.9091).sample
        whole = codec.vocoder.decode(7 * (mel[0] + 1) - 11)[None]
    for window in (7, 32, 256):
        assert error(codec.decode_mel(latents, window=window), mel) < 1e-5
        assert error(codec.decode(latents, sample_rate_hz=44_100, window=window), whole) < 1e-5


def test_weights_are_multiplied_out_once_a_song(codec: MusicDCAE, monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied = []
    weight_norm = torch._weight_norm
    monkeypatch.setattr(torch, "_weight_norm", lambda *args: multiplied.append(args[0]) or weight_norm(*args))
    codec.decode(noise(1, 8, 16, 30), window=7)
    assert len(multiplied) == len({id(direction) for direction in multiplied}) > 0


def test_folded_weights_follow_the_weights_after_them() -> None:
    vocoder = filled_vocoder(**CONFIG["vocoder"])
    mel = noise(1, 128, 3)
    expected = vocoder.decode(mel)
    with vocoder.folded_weights():
        assert torch.equal(vocoder.decode(mel), expected)
    assert vocoder.state_dict().keys() == filled_vocoder(**CONFIG["vocoder"]).state_dict().keys()
    vocoder.head.conv_post.weight_g.zero_()
    assert not torch.equal(vocoder.decode(mel), expected)


def test_encoding_in_windows_gives_the_whole(codec: MusicDCAE) -> None:
    audio = 0.1 * noise(1, 2, 250_000)
    padded = nn.functional.pad(audio, (0, -250_000 % 4096))
    with torch.no_grad():
        mel = (codec.vocoder.encode(padded[0]) + 11) / 7 - 1
        whole = (codec.autoencoder.encode(mel[None]).latent + 1.9091) * 0.1786
    for window in (7, 20, 256):
        assert error(codec.encode(audio, 44_100, window=window)[0], whole) < 1e-4


class LargestTensor(TorchDispatchMode):
    """The element count of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_memory_follows_the_window(codec: MusicDCAE) -> None:
    latents = noise(1, 8, 16, 300)
    with LargestTensor() as whole:
        codec.decode_mel(latents, window=300)
    with LargestTensor() as windows:
        mel = codec.decode_mel(latents, window=32)
    assert whole.elements >= 4 * mel.numel()
    assert windows.elements <= mel.numel()


def test_reach_of_the_released_vocoder_holds() -> None:
    """Narrow, but as deep as released: a change of one frame stays within `reach`, and comes close to it."""
    vocoder = filled_vocoder(input_channels=4, dims=(4, 4, 4, 4), num_mels=4, upsample_initial_channel=128).double()
    frames, middle = 240, 120
    mel = noise(1, 4, frames).double()
    changed = mel.clone()
    changed[..., middle] += 1
    moved = (vocoder.decode(changed) - vocoder.decode(mel))[0].abs() > 1e-15
    touched = torch.nonzero(moved)[:, 0] // 512
    assert middle - vocoder.reach <= touched.min() <= middle - vocoder.reach // 2
    assert middle + vocoder.reach // 2 <= touched.max() <= middle + vocoder.reach


def test_mono_goes_to_both_channels(codec: MusicDCAE, waveform: Tensor) -> None:
    left = waveform[:, :1]
    assert torch.equal(codec.encode(left)[0], codec.encode(left.expand(-1, 2, -1))[0])


@pytest.mark.parametrize(
    ("samples", "rate", "frames", "whole"),
    [
        (48_000, 48_000, 11, 10),
        (44_100, 44_100, 11, 10),
        (1, 48_000, 1, 0),
        (8_192, 44_100, 2, 2),
        (90_000, 32_000, 31, 30),
    ],
)
def test_lengths(codec: MusicDCAE, samples: int, rate: int, frames: int, whole: int) -> None:
    latents, lengths = codec.encode(0.1 * noise(1, 2, samples), rate)
    assert latents.shape == (1, 8, 16, frames)
    assert lengths.tolist() == [whole]
    assert torch.isfinite(latents).all()
    assert codec.decode(latents, rate).shape == (1, 2, math.ceil(frames * 4096 * rate / 44_100))


def test_ten_minutes_have_the_frames_of_ten_minutes() -> None:
    assert latent_length(600 * 48_000) == int(600 * 44_100 / 512 / 8) == 6459


def test_items_of_a_padded_batch_get_what_they_get_alone(codec: MusicDCAE) -> None:
    audio = 0.1 * noise(2, 2, 60_000)
    latents, lengths = codec.encode(audio, lengths=torch.tensor([60_000, 25_000]))
    short, _ = codec.encode(audio[1:, :, :25_000])
    assert lengths.tolist() == [13, 5]
    assert torch.equal(latents[1:, ..., : short.shape[-1]], short)
    assert not latents[1, ..., short.shape[-1] :].any()


def test_batch_items_do_not_meet(codec: MusicDCAE) -> None:
    latents = noise(2, 8, 16, 12)
    assert error(codec.decode(latents)[1:], codec.decode(latents[1:])) < 1e-5


def test_silence_is_finite(codec: MusicDCAE) -> None:
    latents, _ = codec.encode(torch.zeros(1, 2, 48_000))
    assert torch.isfinite(latents).all()


def test_bfloat16_is_near_float32(codec: MusicDCAE, waveform: Tensor) -> None:
    half = new_codec().to(torch.bfloat16)
    assert half.vocoder.mel_transform.spectrogram.window.dtype == torch.float32
    assert torch.equal(half.vocoder.encode(waveform[0]), codec.vocoder.encode(waveform[0]))

    latents, _ = codec.encode(waveform)
    assert norm_error(half.encode(waveform)[0], latents) < 0.02
    assert norm_error(half.decode_mel(latents), codec.decode_mel(latents)) < 0.02
    assert norm_error(half.decode(latents), codec.decode(latents)) < 0.05


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_codec_is_the_same(codec: MusicDCAE, waveform: Tensor, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    again = MusicDCAE.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert same_weights(again, codec)
    latents, _ = codec.encode(waveform)
    assert error(again.encode(waveform)[0], latents) < 1e-5
    half = MusicDCAE.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, low_cpu_mem_usage=False)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.vocoder.mel_transform.mel_scale.fb, codec.vocoder.mel_transform.mel_scale.fb)


def test_the_parts_are_saved_as_released(codec: MusicDCAE, tmp_path: Path) -> None:
    codec.autoencoder.save_pretrained(tmp_path / "music_dcae_f8c8")
    codec.vocoder.save_pretrained(tmp_path / "music_vocoder")
    again = MusicDCAE.from_parts(
        AutoencoderDC.from_pretrained(tmp_path / "music_dcae_f8c8", low_cpu_mem_usage=False),
        ADaMoSHiFiGANV1.from_pretrained(tmp_path / "music_vocoder", low_cpu_mem_usage=False),
    )
    assert same_weights(again, codec)
    latents = noise(1, 8, 16, 5)
    assert error(again.decode(latents), codec.decode(latents)) < 1e-5


@pytest.mark.parametrize("rates", [(48_000, 44_100), (44_100, 48_000), (22_050, 44_100)])
def test_resampling_keeps_a_tone(rates: tuple[int, int]) -> None:
    source, target = rates
    tone = [torch.sin(2 * torch.pi * 1000 * torch.arange(rate, dtype=torch.float64) / rate) for rate in rates]
    resampled = resample(tone[0], source, target)
    assert len(resampled) == target
    assert (resampled - tone[1])[1000:-1000].abs().max() < 2e-3


def test_refuses_rates_without_a_common_divisor() -> None:
    with pytest.raises(ValueError, match="too odd"):
        resample(torch.zeros(10), 44_099, 44_100)


def test_refuses_empty_windows(codec: MusicDCAE) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        codec.decode(noise(1, 8, 16, 3), window=0)


@pytest.mark.parametrize("shape", [(2, 48_000), (1, 3, 48_000), (1, 2, 0)])
def test_refuses_what_is_no_waveform(codec: MusicDCAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        codec.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(8, 16, 4), (1, 4, 16, 4), (1, 8, 16, 0)])
def test_refuses_what_are_no_latents(codec: MusicDCAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        codec.decode(torch.zeros(shape))


def test_refuses_lengths_beyond_the_waveform(codec: MusicDCAE) -> None:
    with pytest.raises(ValueError, match="lengths"):
        codec.encode(torch.zeros(1, 2, 1000), lengths=torch.tensor([1001]))


def test_refuses_attention_that_windows_cannot_follow() -> None:
    blocks = ["ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"]
    with pytest.raises(ValueError, match="last encoder and decoder stage"):
        MusicDCAE(CONFIG["autoencoder"] | {"decoder_block_types": blocks}, CONFIG["vocoder"])
