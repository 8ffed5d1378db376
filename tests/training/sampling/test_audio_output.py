"""Clips as audio files: what is written is what is read, loud ones are turned down, half a file never appears."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support.audio import noise, tone, write
from training.sampling import SamplingError, audio
from training.sampling.audio import FORMATS, read_audio, write_audio

STEP = 2.0**-23  # of 24 bits


def stored(path: Path) -> np.ndarray:
    """What a player gets: float64 [2, samples]."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
        assert frames[0].sample_rate == 48_000
        planar = [f.to_ndarray() if f.format.is_planar else f.to_ndarray().reshape(-1, 2).T for f in frames]
    samples = np.concatenate(planar, axis=1)
    return samples / 2.0**31 if samples.dtype == np.int32 else samples.astype(np.float64)


def clip(seconds: float = 0.5) -> torch.Tensor:
    return torch.from_numpy(noise(seconds, 48_000, dbfs=-20))


@pytest.mark.parametrize("extension", [".wav", ".flac", ".WAV"])
def test_lossless_formats_hold_24_bits(tmp_path: Path, extension: str):
    written = clip()
    assert write_audio(tmp_path / f"clip{extension}", written) == 1.0
    read = stored(tmp_path / f"clip{extension}")
    assert read.shape == written.shape
    assert np.abs(read - written.numpy()).max() <= STEP / 2


def test_ogg_is_opus_and_sounds_the_same(tmp_path: Path):
    written = torch.from_numpy(tone(440, 1.0, 48_000))
    write_audio(tmp_path / "clip.ogg", written)
    with av.open(str(tmp_path / "clip.ogg")) as container:
        assert container.streams.audio[0].codec.canonical_name == "opus"
    read = stored(tmp_path / "clip.ogg")[:, : written.shape[1]]
    assert np.corrcoef(read[0], written[0, : read.shape[1]])[0, 1] > 0.99


@given(
    arrays.arrays(
        np.float32, st.tuples(st.just(2), st.integers(1, 300)), elements=st.floats(-(2.0**10), 2.0**10, width=32)
    )
)
def test_a_clip_is_stored_as_it_is_or_turned_down_as_a_whole(tmp_path_factory: pytest.TempPathFactory, samples):
    path = tmp_path_factory.getbasetemp() / "any.wav"
    gain = write_audio(path, torch.from_numpy(samples))
    peak = np.abs(samples).max()
    assert gain == 1.0 if peak <= 1 else gain * peak == pytest.approx(1.0)
    # Half a step; at full scale, which 24 bits reach on the negative side only, a whole one.
    assert np.abs(stored(path) - samples.astype(np.float64) * gain).max() <= 1.01 * STEP


@pytest.mark.parametrize("extension", FORMATS)
def test_the_same_clip_gives_the_same_bytes_and_carries_its_tags(tmp_path: Path, extension: str):
    paths = [tmp_path / f"{name}{extension}" for name in "ab"]
    for path in paths:
        write_audio(path, clip(), tags={"comment": "made by songmill: “folk”\nslow"})
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with av.open(str(paths[0])) as container:
        metadata = {**container.metadata, **container.streams.audio[0].metadata}
    assert metadata["comment"] == "made by songmill: “folk” slow"


@pytest.mark.parametrize(
    ("name", "waveform", "said"),
    [
        ("clip.mp3", torch.zeros(2, 9), r"\.wav, \.flac, \.ogg"),
        ("clip", torch.zeros(2, 9), "without extension"),
        ("clip.wav", torch.zeros(1, 9), "stereo"),
        ("clip.wav", torch.zeros(2, 0), "stereo"),
        ("clip.wav", torch.full((2, 9), float("nan")), "NaN or infinity"),
        ("clip.wav", torch.full((2, 9), float("inf")), "NaN or infinity"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, waveform: torch.Tensor, said: str):
    with pytest.raises(SamplingError, match=said):
        write_audio(tmp_path / name, waveform)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(SamplingError, match=r"file/clip\.wav cannot be written"):
        write_audio(tmp_path / "file" / "clip.wav", clip())


@pytest.mark.parametrize("extension", FORMATS)
def test_an_interrupted_clip_leaves_the_older_file(tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / f"clip{extension}"
    write_audio(path, clip())
    before, whole_frame = path.read_bytes(), audio._frame

    def interrupted(block, start, *more):
        if start:
            raise KeyboardInterrupt
        return whole_frame(block, start, *more)

    monkeypatch.setattr(audio, "_frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_audio(path, clip(3.0))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_source_is_read_as_stereo_at_the_rate_of_the_shards(tmp_path: Path):
    write(tmp_path / "mono.flac", tone(440, 1.0, 32_000, channels=1), 32_000)
    waveform, rate_hz = read_audio(tmp_path / "mono.flac")
    assert (waveform.shape, waveform.dtype, rate_hz) == ((2, 44_100), torch.float32, 44_100)
    assert waveform.abs().max() == pytest.approx(10 ** (-12 / 20), rel=0.01)
    assert torch.equal(waveform[0], waveform[1])


@pytest.mark.parametrize("content", [None, b"", b"these are words"])
def test_a_source_that_is_no_audio_is_named(tmp_path: Path, content: bytes | None):
    path = tmp_path / "song.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SamplingError, match=r"song\.wav"):
        read_audio(path)


def test_a_source_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audio, "MAX_SOURCE_S", 1.0)
    write(tmp_path / "long.wav", tone(440, 2.0))
    with pytest.raises(SamplingError, match=r"long\.wav: 2 s of audio, at most 1 s"):
        read_audio(tmp_path / "long.wav")
