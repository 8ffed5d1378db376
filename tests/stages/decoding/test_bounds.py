"""Songs whose headers lie, and songs that are odd but legal: a reason in words, and memory that was foreseen."""

import os
import resource
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages import pcm
from stages.base import Stage, Track, TrackError
from stages.decode import Decode, DecodeParams, EmptyFile, Unreadable, decode_file
from stages.decoding.bounds import AbsurdHeader, NoMixdown, TooLarge
from stages.fingerprint import Fingerprint
from stages.quality import Quality
from tests.support.audio import noise, tone, write


def wav(path: Path, rate_hz: int, channels: int = 1, frames: int = 20_000, mask: int | None = None) -> Path:
    """16-bit noise under a header that says whatever it is told; with a mask, which speakers the channels are for."""
    data = np.random.default_rng(0).integers(-9_000, 9_000, frames * channels, dtype=np.int16).tobytes()
    form = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * channels * 2 & 0xFFFFFFFF, channels * 2, 16)
    if mask is not None:
        guid = bytes.fromhex("0100000000001000800000aa00389b71")
        form = struct.pack("<H", 0xFFFE) + form[2:] + struct.pack("<HHI", 22, 16, mask) + guid
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path


def measured(path: Path) -> dict[str, Any]:
    """What the scan makes of a file."""
    decode = Decode()
    made = decode.run(pa.table({"uri": [str(path)]}))
    columns = {"audio": decode.type, **decode.working}
    batch = pa.table({name: pa.array(made[name], type) for name, type in columns.items()})
    stages: tuple[Stage, ...] = (Quality(), Fingerprint())
    return {stage.column: stage.run(batch)[stage.column][0] for stage in stages} | {"pcm": Track(batch, 0)["pcm"]}


@pytest.mark.parametrize("rate_hz", [2_147_483_647, 9, 1, 3_999, 768_001])
def test_an_absurd_rate_is_refused_by_name(tmp_path: Path, rate_hz: int) -> None:
    path = wav(tmp_path / "x.wav", rate_hz)

    with pytest.raises(AbsurdHeader, match=rf"x\.wav: its header says {rate_hz} Hz; 4,000 to 768,000 Hz are decoded"):
        decode_file(str(path))


def test_bounds_are_parameters_that_no_fingerprint_knows(tmp_path: Path) -> None:
    path = wav(tmp_path / "x.wav", 48_000, 2)

    with pytest.raises(AbsurdHeader, match="1 to 1 are decoded"):
        decode_file(str(path), params=DecodeParams(max_channels=1))
    assert DecodeParams(max_channels=1, max_mb=5).model_dump() == DecodeParams().model_dump()
    assert {*DecodeParams().model_dump()} == {"limit_s", "missing_s", "lost_ratio"}  # as in datasets made before


@pytest.mark.parametrize(("channels", "error"), [(25, AbsurdHeader), (64, AbsurdHeader), (9, NoMixdown)])
def test_channels_that_nobody_can_mix_are_refused(tmp_path: Path, channels: int, error: type[TrackError]) -> None:
    with pytest.raises(error, match=rf"x\.wav: .*{channels} channels"):
        decode_file(str(wav(tmp_path / "x.wav", 44_100, channels)), wanted={"native"})


def test_speakers_that_make_no_stereo_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoMixdown, match="TFL"):
        decode_file(str(wav(tmp_path / "ceiling.wav", 44_100, 3, mask=0x7000)))


@pytest.mark.parametrize("channels", [65, 255, 30_000])
def test_more_channels_than_ffmpeg_knows(tmp_path: Path, channels: int) -> None:
    with pytest.raises(TrackError, match=r"x\.wav"):
        decode_file(str(wav(tmp_path / "x.wav", 44_100, channels, frames=50)))


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 24])
@pytest.mark.parametrize("rate_hz", [4_000, 44_100, 768_000])
@pytest.mark.parametrize("frames", [1, 7, 30_000])
def test_whatever_is_within_bounds_is_measured(tmp_path: Path, channels: int, rate_hz: int, frames: int) -> None:
    made = measured(wav(tmp_path / "x.wav", rate_hz, channels, frames))

    figures = [value for value in made["quality"].values() if isinstance(value, float)]
    assert np.isfinite(figures).all()
    assert pcm.duration_s(made["pcm"]) == pytest.approx(frames / rate_hz, abs=1 / 44_100)


def test_no_frames(tmp_path: Path) -> None:
    with pytest.raises(EmptyFile, match=r"x\.wav: headers without samples"):
        decode_file(str(wav(tmp_path / "x.wav", 44_100, frames=0)))


def test_numbers_that_are_none_do_not_spread(tmp_path: Path) -> None:
    song = tone(440, 2.0)
    song[:, 30_000:30_010], song[:, 50_000] = np.nan, np.inf
    path = write(tmp_path / "x.wav", song, codec="pcm_f32le")

    made = measured(path)

    heard = pcm.stereo(made["pcm"])
    assert np.abs(heard - tone(440, 2.0))[:, [*range(29_000), *range(60_000, 88_200)]].max() < 2**-14
    assert np.isfinite([value for value in made["quality"].values() if isinstance(value, float)]).all()
    assert len(made["fingerprint"]["hashes"]) > 0


def test_more_memory_than_allowed_is_refused_before_and_while_decoding(tmp_path: Path) -> None:
    second = wav(tmp_path / "x.wav", 48_000, 2, frames=48_000)
    endless = write(tmp_path / "x.aac", noise(4.0))  # no header tells its length

    for path in (second, endless):
        with pytest.raises(TooLarge, match=r"x\.\w+: .* take .* decode\.max_mb allows 0"):
            decode_file(str(path), params=DecodeParams(max_mb=0.3))
    assert decode_file(str(second), {"pcm"}, DecodeParams(max_mb=0.3)).pcm is not None  # which has a bound of its own


def test_a_day_of_silence_in_a_few_kilobytes_takes_no_more_than_the_limit(tmp_path: Path) -> None:
    """FLAC of silence, glued to itself: FFmpeg decodes on, whatever the header says."""
    one = write(tmp_path / "one.flac", np.zeros((2, 4_410_000), np.float32)).read_bytes()
    frames = one[one.index(b"\xff\xf8") :]
    bomb = tmp_path / "bomb.flac"
    bomb.write_bytes(one[: -len(frames)] + frames * 300)  # more than eight hours

    decoded = decode_file(str(bomb), params=DecodeParams(limit_s=120.0))

    assert decoded.native is decoded.pcm is None
    assert decoded.duration_s > 120


def test_a_length_that_no_song_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mka", tone(440, 1.0), codec="flac")
    content = bytearray(path.read_bytes())
    duration = content.index(b"\x44\x89\x88") + 3  # Matroska's element, eight bytes, milliseconds
    struct.pack_into(">d", content, duration, 1e12)
    path.write_bytes(content)

    with pytest.raises(AbsurdHeader, match=r"x\.mka: its header says 1,000,000,000 s; up to 604,800 s are believed"):
        decode_file(str(path))


def test_headers_that_never_end_are_not_read_to_their_end(tmp_path: Path) -> None:
    """80 MB of cover art."""
    song = write(tmp_path / "x.mp3", tone(440, 1.0)).read_bytes()
    size = 80 << 20
    syncsafe = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    with (tmp_path / "x.mp3").open("wb") as file:
        file.write(b"ID3\4\0\0" + syncsafe)
        file.write(b"APIC" + bytes((size - 10) >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(2))
        file.write(b"\0image/png\0\3\0")
        file.seek(size + 10)
        file.write(song)

    with pytest.raises(AbsurdHeader, match="headers take more than 64 MiB"):
        decode_file(str(tmp_path / "x.mp3"))


def test_a_tag_that_claims_a_gigabyte_takes_none(tmp_path: Path) -> None:
    """FFmpeg would clear as much memory before it read the first byte of it."""
    content = wav(tmp_path / "x.wav", 44_100).read_bytes()
    at = content.index(b"data")
    tag = b"LIST" + struct.pack("<I", 1 << 31) + b"INFOIART" + struct.pack("<I", 1 << 30) + b"Ann"
    (tmp_path / "x.wav").write_bytes(content[:at] + tag + content[at:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(TrackError, match=r"x\.wav"):
        decode_file(str(tmp_path / "x.wav"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize(
    ("name", "codec"), [("x.flac", "flac"), ("x.opus", "libopus"), ("x.ogg", "vorbis"), ("x.oga", "flac")]
)
def test_more_comments_than_ffmpeg_reads_in_a_day_are_refused(tmp_path: Path, name: str, codec: str) -> None:
    path = write(tmp_path / name, tone(440, 1.0, 48_000), 48_000, codec=codec, metadata={"title": "Song"})
    assert decode_file(str(path)).duration_s == pytest.approx(1.0, abs=0.02)
    content = bytearray(path.read_bytes())
    vendor = content.index(b"Lav")  # what the comments begin with; how many there are comes behind it
    count = vendor + struct.unpack_from("<I", content, vendor - 4)[0]
    struct.pack_into("<I", content, count, 2_000_000)
    path.write_bytes(content)

    with pytest.raises(AbsurdHeader, match=r"its header says 2,000,000 comments; 10,000 are read"):
        decode_file(str(path))


@pytest.fixture
def special(tmp_path: Path) -> dict[str, Path]:
    """Things with the name of a song that wait for ever, or never end, when they are opened."""
    made = {name: tmp_path / f"{name}.wav" for name in ("fifo", "socket", "zero", "linked")}
    os.mkfifo(made["fifo"])
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(os.path.relpath(made["socket"]))  # such a name is 107 bytes long at most
    bound.close()
    made["zero"].symlink_to("/dev/zero")
    made["linked"].symlink_to(made["fifo"])
    return made


@pytest.mark.parametrize("name", ["fifo", "socket", "zero", "linked"])
def test_what_is_no_regular_file_is_never_waited_for(special: dict[str, Path], name: str) -> None:
    """It may have taken a song's place after it was listed."""
    for uri in (str(special[name]), special[name].as_uri()):
        with pytest.raises(Unreadable, match=f"{name}.wav"):
            decode_file(uri)
