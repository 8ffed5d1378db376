from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.models.convert import spleeter as converter
from stages import pcm
from stages.nets.spleeter import HOP, SEGMENT, Spleeter, UNet, _four_outputs, _Up
from stages.signal.voice_activity import RATE_HZ, voiced_spans
from stages.vocals import Vocals
from tests.support import audio as signals
from tests.support.tracks import load, measure, ready

SUNG = {
    "audio_ace_step_1_5_split_4b-1.mp3": 16.0,
    "audio_ace_step_1_5_checkpoint-1.mp3": 24.0,
    "audio_ace_step_1_5_split-1.mp3": 16.0,
    "audio_ace_step_1_t2a_song-1.mp3": 12.0,
}
INSTRUMENTAL = {
    "tender_electronic_1.opus": "demo-music",
    "nostalgic_acoustic_s411.opus": "demo-music",
    "audio_ace_step_1_t2a_instrumentals-1.mp3": "demo-songs",
}


@pytest.fixture(scope="module")
def vocals(weights: Callable) -> Vocals:
    return ready(Vocals, weights)


@pytest.fixture(scope="module")
def separator(weights: Callable) -> Spleeter:
    return Spleeter.load(weights("spleeter-2stems")["spleeter-2stems"].path)


def separated(separator: Spleeter, mix: np.ndarray) -> np.ndarray:
    return np.concatenate(list(separator.separate(mix)), axis=1)


def si_sdr_db(estimate: np.ndarray, target: np.ndarray) -> float:
    wanted = target * np.vdot(estimate, target) / np.vdot(target, target)
    return float(10 * np.log10(np.sum(wanted**2) / np.sum((estimate - wanted) ** 2)))


@pytest.mark.parametrize("song", SUNG)
def test_songs_have_vocals(vocals: Vocals, audio: Callable, song: str) -> None:
    mix = load(audio("demo-songs", song), 11.0, start_s=SUNG[song])
    row = measure(vocals, pcm=pcm.encode(mix))
    assert row["vocals"]["has_vocals"]
    assert 0.1 < row["vocals"]["active_ratio"] <= 1
    assert row["vocals"]["model"].startswith("spleeter-2stems@")
    assert len(row["vocal_stem"]) == len(pcm.encode(mix))


@pytest.mark.parametrize("track", INSTRUMENTAL)
def test_instrumentals_have_none(vocals: Vocals, audio: Callable, track: str) -> None:
    mix = load(audio(INSTRUMENTAL[track], track), 22.0)
    assert not measure(vocals, pcm=pcm.encode(mix))["vocals"]["has_vocals"]


def test_the_stem_is_made_only_when_somebody_reads_it(vocals: Vocals) -> None:
    mix = pcm.encode(signals.tone(440, 1.0))
    try:
        vocals.wanted = frozenset()
        assert set(measure(vocals, pcm=mix)) == {"vocals"}
    finally:
        vocals.wanted = frozenset(vocals.working)


@pytest.mark.parametrize("seconds", [0.01, 1.0])
def test_silence_has_no_vocals(vocals: Vocals, seconds: float) -> None:
    silent = pcm.encode(signals.silence(seconds))
    row = measure(vocals, pcm=silent)
    assert row["vocals"] | {"model": ""} == {"has_vocals": False, "active_ratio": 0.0, "model": ""}
    assert bytes(row["vocal_stem"]) == silent


def test_a_voice_in_music_comes_out(separator: Spleeter, audio: Callable) -> None:
    voice = load(audio("speech-clips", "en/counting.wav"))
    music = load(audio("demo-music", "calm_acoustic_1.opus"))[:, : voice.shape[1]]
    music *= np.sqrt(np.mean(voice**2) / np.mean(music**2))
    mix = voice + music
    assert si_sdr_db(separated(separator, mix), voice) > si_sdr_db(mix, voice) + 5


def test_both_channels_of_a_mono_song_stay_alike(separator: Spleeter, audio: Callable) -> None:
    mix = load(audio("demo-songs", "audio_ace_step_1_t2a_song-1.mp3"), 4.0, start_s=14.0)
    mono = np.repeat(mix.mean(axis=0, keepdims=True), 2, axis=0)
    left, right = separated(separator, mono)
    assert np.sum((left - right) ** 2) < 1e-2 * np.sum(left**2)


def test_segments_do_not_see_each_other(separator: Spleeter, audio: Callable) -> None:
    """A song cut at the grid of the segments gives the same vocals as the whole, away from the cut."""
    mix = load(audio("demo-songs", "audio_ace_step_1_t2a_song-1.mp3"), 20.0)
    cut = SEGMENT * HOP
    whole, rest = separated(separator, mix), separated(separator, mix[:, cut:])
    assert whole.shape == mix.shape
    np.testing.assert_allclose(whole[:, cut + cut // 2 :], rest[:, cut // 2 :], atol=1e-4)
    assert np.abs(rest[:, cut // 2 :]).max() > 1e-2  # there is something to compare


def test_an_open_mask_gives_the_mix_back(separator: Spleeter, audio: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cutting, transforming and overlap-adding lose nothing below 11 kHz, at the edges of segments and song too."""
    monkeypatch.setattr(Spleeter, "forward", lambda _, magnitude: torch.ones_like(magnitude))
    mix = signals.mix(signals.tone(220, 13.0), signals.tone(3000, 13.0))
    mix[:, :2000] *= np.linspace(0, 1, 2000, dtype=np.float32)  # no click, whose spectrum would reach above 11 kHz
    mix[:, -2000:] *= np.linspace(1, 0, 2000, dtype=np.float32)
    np.testing.assert_allclose(separated(separator, mix), mix, atol=1e-3)


def test_voiced_spans_follow_the_voice(audio: Callable) -> None:
    voice = load(audio("speech-clips", "en/quick_brown_fox.wav"))
    padded = np.pad(voice, ((0, 0), (2 * pcm.RATE_HZ, 3 * pcm.RATE_HZ)))
    spans = voiced_spans(pcm.mono(pcm.encode(padded), RATE_HZ))
    assert 1.5 < spans[0].start / RATE_HZ < 3.0
    assert spans[-1].stop / RATE_HZ < 2 + voice.shape[1] / pcm.RATE_HZ + 0.6


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (4, 3)])
def test_a_block_of_the_decoder_is_a_transposed_convolution(height: int, width: int) -> None:
    """As Spleeter defines it: kernel 5, stride 2, one row and column cut off in front and two behind."""
    torch.manual_seed(0)
    weight, bias, x = torch.randn(6, 4, 5, 5), torch.randn(4), torch.randn(2, 6, height, width)
    up = _Up(6, 4).eval()
    up.load_state_dict({"conv.weight": _four_outputs(weight), "conv.bias": _four_outputs(bias)}, strict=False)
    defined = up.norm(F.relu(F.conv_transpose2d(x, weight, bias, stride=2)[..., 1:-2, 1:-2]))
    with torch.inference_mode():
        torch.testing.assert_close(up(x), defined, atol=1e-5, rtol=1e-5)


def test_converter_names_every_parameter_of_the_network() -> None:
    norm = ("weight", "bias", "running_mean", "running_var")
    theirs = [
        *(f"down{i}_conv.1.{parameter}" for i in range(1, 7) for parameter in ("weight", "bias")),
        *(f"down{i}_act.0.{parameter}" for i in range(1, 6) for parameter in norm),
        *(f"up{i}.0.{parameter}" for i in range(1, 7) for parameter in ("weight", "bias")),
        *(f"up{i}.3.{parameter}" for i in range(1, 7) for parameter in norm),
        *(f"up7.0.{parameter}" for parameter in ("weight", "bias")),
    ]
    ours = {name for name in UNet().state_dict() if not name.endswith("num_batches_tracked")}
    assert {converter.renamed(name) for name in theirs} == ours
