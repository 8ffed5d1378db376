"""Decoding: every format comes out whole and in place, every kind of broken file gets its name."""

import tracemalloc
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from scipy.signal import correlate

from stages import pcm
from stages.base import Track
from stages.decode import (
    Decode,
    Decoded,
    DecodeError,
    DecodeParams,
    EmptyFile,
    NotAudio,
    TruncatedAudio,
    Unreadable,
    decode_file,
)
from tests.support.audio import clicks, mix, noise, silence, tone, write

SONG = mix(noise(3.0, 48_000, dbfs=-30), clicks(120, 2.9, 48_000))
LOSSLESS = ("pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_s16be", "flac", "alac")


def native(decoded: Decoded) -> np.ndarray:
    """[channels, frames], as the signals of tests.support.audio."""
    assert decoded.native is not None
    return np.frombuffer(decoded.native, dtype=np.float32).reshape(-1, decoded.channels).T


def lag(heard: np.ndarray, meant: np.ndarray) -> int:
    """Frames by which one channel is late against the other."""
    return int(np.argmax(correlate(heard, meant, method="fft"))) - (meant.size - 1)


def cut(path: Path, share: float) -> Path:
    """The first `share` of a file, as a new file beside it."""
    content = path.read_bytes()
    shorter = path.with_name(f"cut {path.name}")
    shorter.write_bytes(content[: int(len(content) * share)])
    return shorter


@pytest.mark.parametrize(
    ("name", "encoding", "codec"),
    [
        ("song.wav", {}, "pcm_s16le"),
        ("song 24.wav", {"codec": "pcm_s24le"}, "pcm_s24le"),
        ("song float.wav", {"codec": "pcm_f32le"}, "pcm_f32le"),
        ("song.aiff", {}, "pcm_s16be"),
        ("song.flac", {}, "flac"),
        ("song 24.flac", {"sample_format": "s32"}, "flac"),
        ("song.mp3", {"kbps": 192}, "mp3"),
        ("song.m4a", {"kbps": 192}, "aac"),
        ("song lossless.m4a", {"codec": "alac"}, "alac"),
        ("song.opus", {"kbps": 128}, "opus"),
        ("song.ogg", {"codec": "vorbis"}, "vorbis"),
        ("song.mka", {"codec": "flac"}, "flac"),
    ],
)
def test_every_format_comes_back_in_place(tmp_path: Path, name: str, encoding: dict[str, Any], codec: str) -> None:
    decoded = decode_file(str(write(tmp_path / name, SONG, 48_000, **encoding)))

    assert (decoded.codec, decoded.sample_rate_hz, decoded.channels, decoded.lost_packets) == (codec, 48_000, 2, 0)
    assert decoded.duration_s == pytest.approx(3.0, abs=0.022)  # AAC may pad its last packet of 1024
    assert lag(native(decoded)[0], SONG[0]) == 0
    if codec in LOSSLESS:
        assert np.abs(native(decoded) - SONG).max() < 2**-15
    at_44100 = pcm.stereo(decoded.pcm)
    assert at_44100.shape[1] == pytest.approx(decoded.duration_s * 44_100, abs=1)
    assert lag(at_44100[0], clicks(120, 2.9, 44_100)[0]) == 0


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 96_000, 192_000])
def test_every_rate_becomes_canonical(tmp_path: Path, rate_hz: int) -> None:
    decoded = decode_file(str(write(tmp_path / "tone.wav", tone(997, 1.0, rate_hz), rate_hz)))

    heard = pcm.stereo(decoded.pcm)
    middle = slice(4_410, -4_410)  # away from the resampler's edges
    assert decoded.sample_rate_hz == rate_hz
    assert heard.shape == (2, 44_100)
    assert np.abs(heard - tone(997, 1.0))[:, middle].max() < 2e-4


def test_mono_goes_to_both_channels_at_its_level(tmp_path: Path) -> None:
    decoded = decode_file(str(write(tmp_path / "mono.wav", tone(440, 0.5, channels=1))))

    assert decoded.channels == 1
    assert np.abs(pcm.stereo(decoded.pcm) - tone(440, 0.5)).max() < 2**-14


def test_mono_is_the_mean_of_both_channels_to_the_last_bit() -> None:
    every = np.arange(-32_768, 32_768, dtype="<i2")
    frames = np.stack([every, np.random.default_rng(0).permutation(every)], axis=1)
    exact = frames.mean(axis=1, dtype=np.float32) / np.float32(32_767)
    np.testing.assert_array_equal(pcm.mono(frames.tobytes()), exact)


def test_surround_is_mixed_down_without_clipping(tmp_path: Path) -> None:
    left_and_centre = tone(440, 0.5, channels=6, dbfs=0.0) * np.array([[1], [0], [1], [0], [0], [0]], dtype=np.float32)
    decoded = decode_file(str(write(tmp_path / "film.flac", left_and_centre)))

    left, right = pcm.stereo(decoded.pcm)
    assert decoded.channels == 6
    assert 0.5 < np.abs(left).max() < 1.0
    assert np.abs(right).max() == pytest.approx(np.abs(left).max() * 0.5**0.5 / (1 + 0.5**0.5), rel=0.01)


def test_songs_glued_together_keep_the_first_ones_rate(tmp_path: Path) -> None:
    first = write(tmp_path / "a.mp3", tone(440, 15.0, 44_100), 44_100).read_bytes()
    second = write(tmp_path / "b.mp3", tone(440, 1.0, 48_000, channels=1), 48_000).read_bytes()
    (tmp_path / "both.mp3").write_bytes(first + second)

    decoded = decode_file(str(tmp_path / "both.mp3"))

    assert (decoded.sample_rate_hz, decoded.channels) == (44_100, 2)
    assert decoded.duration_s == pytest.approx(16.0, abs=0.15)


def test_content_tells_the_format_and_names_may_be_anything(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", SONG, 48_000).rename(tmp_path / "Ночь — 夜 #1 [live]*.txt")

    assert decode_file(str(path), wanted=()).codec == "flac"


def test_any_filesystem_will_do(tmp_path: Path) -> None:
    path = write(tmp_path / "a song.ogg", SONG, 48_000)
    with fsspec.open("memory://songs/a song.ogg", "wb") as file:
        file.write(path.read_bytes())
    with zipfile.ZipFile(tmp_path / "album.zip", "w") as album:
        album.write(path, "disc 1/a song.ogg")

    uris = (str(path), f"file://{path}", "memory://songs/a song.ogg", f"zip://disc 1/a song.ogg::{tmp_path}/album.zip")
    decoded = [decode_file(uri) for uri in uris]

    assert all(other.pcm == decoded[0].pcm for other in decoded[1:])


def test_tags_that_are_no_utf8_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", SONG, 48_000, metadata={"title": "Motorhead"})
    path.write_bytes(path.read_bytes().replace(b"Motorhead", b"Mot\xf6rhead"))

    assert decode_file(str(path)).duration_s == pytest.approx(3.0)


def test_only_what_is_wanted_is_made(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.wav", SONG, 48_000))

    assert decode_file(path, wanted=("pcm",)).native is None
    assert decode_file(path, wanted=("native",)).pcm is None


@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
def test_over_the_limit_only_the_length_is_told(tmp_path: Path, suffix: str) -> None:
    decoded = decode_file(str(write(tmp_path / f"a{suffix}", SONG, 48_000)), params=DecodeParams(limit_s=2.0))

    assert decoded.native is decoded.pcm is None
    assert decoded.duration_s == pytest.approx(3.0, abs=0.01)


def test_length_that_no_header_tells_is_limited_while_decoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", SONG, 48_000, codec="vorbis")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rfind(b"OggS")])  # without its last page FFmpeg knows no length

    decoded = decode_file(str(path), params=DecodeParams(limit_s=0.5))

    assert decoded.pcm is None
    assert decoded.duration_s > 0.5


@pytest.mark.parametrize(
    "content",
    [
        b"These are the lyrics.\n" * 50,
        b"RIFX",
        bytes(5_000),
        np.random.default_rng(1).bytes(20_000),
        b"1\n00:00:01,000 --> 00:00:02,000\nSubtitles have a format, but no audio.\n\n",
    ],
)
def test_not_audio(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lyrics.wav"
    path.write_bytes(content)

    with pytest.raises(NotAudio, match=r"lyrics\.wav"):
        decode_file(str(path))


def test_a_playlist_cannot_make_it_open_another_file(tmp_path: Path) -> None:
    other = write(tmp_path / "private.wav", SONG, 48_000)
    playlist = tmp_path / "song.wav"
    playlist.write_text(f"ffconcat version 1.0\nfile '{other}'\n")

    with pytest.raises(NotAudio):
        decode_file(str(playlist))


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "nothing.mp3").touch()
    with wave.open(str(tmp_path / "headers.wav"), "wb") as headers:
        headers.setparams((2, 2, 44_100, 0, "NONE", ""))

    for name in ("nothing.mp3", "headers.wav"):
        with pytest.raises(EmptyFile, match=name):
            decode_file(str(tmp_path / name))


@pytest.mark.parametrize("uri", ["missing.wav", ".", "file:///no/such/song.wav", "memory://no/such/song.wav"])
def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(Unreadable):
        decode_file(uri)


def test_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "secret.wav", SONG, 48_000)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)  # the tests may run as root, who may read everything

    with pytest.raises(Unreadable, match=r"secret\.wav: Permission denied"):
        decode_file(str(path))


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("a.wav", {}),
        ("a.aiff", {}),
        ("a.flac", {}),
        ("a.mp3", {}),
        ("a.m4a", {}),
        ("a.opus", {}),
        ("a.ogg", {"codec": "vorbis"}),
        ("a.mka", {"codec": "flac"}),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_truncated(tmp_path: Path, name: str, encoding: dict[str, Any], share: float) -> None:
    path = cut(write(tmp_path / name, SONG, 48_000, **encoding), share)

    with pytest.raises(TruncatedAudio, match="cut a"):
        decode_file(str(path))


def test_truncated_real_song(tmp_path: Path, audio: Callable[[str, str], Path]) -> None:
    song = audio("demo-songs", "audio_ace_step_1_t2a_song-1.mp3")
    copy = tmp_path / "song.mp3"
    copy.write_bytes(song.read_bytes())

    assert decode_file(str(copy), wanted=()).duration_s == pytest.approx(29.9, abs=0.1)
    with pytest.raises(TruncatedAudio, match="promise"):
        decode_file(str(cut(copy, 0.5)))


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", bytes(4)])
def test_a_wav_written_to_a_pipe_is_whole(tmp_path: Path, size: bytes) -> None:
    """Such a writer cannot go back to fill in the sizes."""
    path = write(tmp_path / "a.wav", SONG, 48_000)
    content = bytearray(path.read_bytes())
    data = content.index(b"data")
    content[4:8] = content[data + 4 : data + 8] = size
    path.write_bytes(content)

    assert decode_file(str(path)).duration_s == pytest.approx(3.0)


def test_what_may_be_missing_is_a_parameter(tmp_path: Path) -> None:
    path = str(cut(write(tmp_path / "a.flac", SONG, 48_000), 0.6))

    assert decode_file(path, params=DecodeParams(missing_s=2.0)).duration_s < 2.0


@pytest.mark.parametrize("name", ["a.m4a", "a.mka"])
def test_one_bad_packet_becomes_silence_in_its_place(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, SONG, 48_000, codec="alac" if name == "a.m4a" else "flac")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = bytes(300)
    path.write_bytes(content)

    decoded = decode_file(str(path))

    assert decoded.lost_packets == 1
    assert decoded.duration_s == pytest.approx(3.0, abs=0.001)
    end = native(decoded)[:, -48_000:]
    assert np.abs(end - SONG[:, -48_000:]).max() < 2**-15


@pytest.mark.parametrize("name", ["a.mp3", "a.m4a", "a.flac", "a.opus", "a.mka"])
def test_damaged(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, SONG, 48_000, codec="flac" if name == "a.mka" else None)
    content = bytearray(path.read_bytes())
    start, end = 2_000, len(content) - 6_000  # MP4 keeps its index at the end
    content[start:end] = np.random.default_rng(0).bytes(end - start)
    path.write_bytes(content)

    with pytest.raises((DecodeError, TruncatedAudio), match=name):
        decode_file(str(path))


def test_stage_fills_its_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", SONG, 48_000)
    stage = Decode()

    made = stage.process(Track(pa.table({"uri": [str(path)]}), 0))

    columns = pa.table(
        {name: pa.array([made[name]], type) for name, type in (("audio", Decode.type), *Decode.working.items())}
    )
    row = Track(columns, 0)
    assert row["audio"] == {
        "duration_s": 3.0,
        "sample_rate_hz": 48_000,
        "channels": 2,
        "codec": "mp3",
        "model": "songmill.decode@r1",
    }
    assert pcm.duration_s(row["pcm"]) == pytest.approx(3.0, abs=1e-4)
    assert len(row["native"]["samples"]) == 3 * 48_000 * 2 * 4


def test_stage_leaves_out_what_nobody_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", SONG, 48_000)
    stage = Decode()
    stage.wanted = frozenset({"pcm"})

    row = stage.run(pa.table({"uri": [str(path)]}))

    assert set(row) == {"audio", "pcm"}


def test_no_samples_outlive_their_row(tmp_path: Path) -> None:
    """Workers decode thousands of songs; Arrow keeps for ever what it is handed as a memoryview."""
    batch = pa.table({"uri": [str(write(tmp_path / "a.wav", SONG, 44_100))]})
    stage = Decode()

    def held() -> int:
        made = stage.run(batch)
        for name, type in Decode.working.items():
            pa.array(made[name], type)
        del made
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = held()
        assert held() - before < 44_100
    finally:
        tracemalloc.stop()


def test_an_adts_file_that_opens_with_silence_is_as_long_as_it_is(tmp_path):
    song = np.concatenate([silence(20), noise(10)], axis=1)
    decoded = decode_file(str(write(tmp_path / "song.aac", song)))
    assert decoded.duration_s == pytest.approx(30, abs=0.2)
    assert decoded.pcm is not None
