"""The length that a file's headers promise, to tell a truncated file from a short one."""

import struct
from typing import BinaryIO

import mutagen
from av import AudioStream
from av.container import InputContainer
from mutagen.mp3 import BitrateMode, MPEGInfo

# Streams without a header of their own: FFmpeg derives their length from size and bit rate, which promises nothing.
HEADERLESS = frozenset({"aac", "ac3", "eac3", "amr", "dts", "loas", "mpeg", "mpegts"})
_UNKNOWN_SIZES = frozenset({0, 0xFFFFFFFF})  # what a writer that cannot seek back leaves in a RIFF header
_OGG_END_OF_STREAM = 0x04
_OGG_PAGE_MAX = 27 + 255 + 255 * 255


def promised_s(file: BinaryIO, container: InputContainer, stream: AudioStream) -> float | None:
    """Seconds of audio that the headers promise; None when they promise nothing."""
    name = container.format.name
    if name in HEADERLESS:
        return None
    if name == "mp3":
        return _xing_s(file)
    if name == "wav":
        return _riff_s(file, container)
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6
    return None


def ogg_is_complete(file: BinaryIO) -> bool:
    """Whether an Ogg file ends with a complete page that is marked as its stream's last (RFC 3533, section 6)."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _OGG_PAGE_MAX))
    tail = file.read(_OGG_PAGE_MAX)
    start = tail.rfind(b"OggS")
    page = tail[start:] if start >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    segments = page[27 : 27 + page[26]]
    return bool(page[5] & _OGG_END_OF_STREAM) and len(page) >= 27 + len(segments) + sum(segments)


def _xing_s(file: BinaryIO) -> float | None:
    """From the frame count in the Xing, Info or VBRI header of an MP3; its tags are skipped."""
    try:
        info = MPEGInfo(file, 0)
    except mutagen.MutagenError:
        return None
    return info.length if info.bitrate_mode != BitrateMode.UNKNOWN else None


def _riff_s(file: BinaryIO, container: InputContainer) -> float | None:
    """From the size in the RIFF header: FFmpeg silently lowers a WAV's length to what the file holds."""
    held_s = (container.duration or 0) / 1e6
    file_bytes = file.seek(0, 2)
    file.seek(0)
    tag, riff_bytes = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
    if tag != b"RIFF" or riff_bytes in _UNKNOWN_SIZES:
        return held_s
    return held_s * max(1.0, (riff_bytes + 8) / file_bytes)
