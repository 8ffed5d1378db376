"""Media files as they come from broken disks, broken writers and people who mean harm: real ones, mutated by a seed.

`mutants(folder, count, seed)` writes them. Every seed gives the same files, so that a failure can be looked at again:

    python -m tests.support.mutations FOLDER --count 1000 --seed 3
"""

import argparse
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np

from tests.support.audio import clicks, mix, noise, tone, write

_RATE_HZ = 48_000
# Name of a seed file -> how it is encoded; two seconds of sound each, for the headers are what matters.
_SEEDS: dict[str, dict[str, object]] = {
    "a.wav": {},
    "24.wav": {"codec": "pcm_s24le"},
    "float.wav": {"codec": "pcm_f32le"},
    "double.wav": {"codec": "pcm_f64le"},
    "alaw.wav": {"codec": "pcm_alaw"},
    "adpcm.wav": {"codec": "adpcm_ms"},
    "a.aiff": {},
    "24.aif": {"codec": "pcm_s24be"},
    "a.flac": {},
    "24.flac": {"sample_format": "s32"},
    "a.mp3": {"kbps": 128},
    "a.aac": {"kbps": 96},
    "a.m4a": {"kbps": 96},
    "alac.m4a": {"codec": "alac"},
    "a.mp4": {"codec": "aac"},
    "a.opus": {"kbps": 64},
    "vorbis.ogg": {"codec": "vorbis"},
    "flac.oga": {"codec": "flac"},
}
_TAGS = {"title": "Song", "artist": "Ann", "comment": "x" * 300}
# What headers begin with, that is, where to lie: a field of theirs lies within the next bytes.
_HEADERS = (
    *(b"RIFF", b"fmt ", b"data", b"LIST", b"fact"),
    *(b"FORM", b"COMM", b"SSND"),
    *(b"fLaC", b"OggS", b"OpusHead", b"OpusTags", b"\x01vorbis", b"\x03vorbis", b"\x05vorbis"),
    *(b"ID3", b"TIT2", b"Xing", b"Info"),
    *(b"ftyp", b"moov", b"mvhd", b"mdhd", b"trak", b"stsd", b"mp4a", b"alac", b"esds"),
    *(b"stts", b"stsc", b"stsz", b"stco", b"elst", b"edts", b"ilst", b"mdat", b"udta", b"meta"),
)
_HEADER_BYTES = 48
_EXTREMES = (0, 1, 2, 3, 8, 9, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutants(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write so many mutated files, most of them broken in one way, some in several; the same ones for the same seed."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = _seed_files(folder / ".seeds")  # a hidden folder is no input
    return [_mutant(folder, number, seeds, Random(f"{seed}/{number}")) for number in range(count)]


def _mutant(folder: Path, number: int, seeds: list[Path], chance: Random) -> Path:
    original = chance.choice(seeds)
    content = bytearray(original.read_bytes())
    names = []
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        mutate = chance.choice(_MUTATIONS)
        content = mutate(content, chance)
        names.append(mutate.__name__.strip("_"))
    path = folder / f"{number:04d} {original.stem} {'+'.join(names)}{original.suffix}"
    path.write_bytes(content)
    return path


def _bit_flips(content: bytearray, chance: Random) -> bytearray:
    for _ in range(chance.choice((1, 3, 30, 300))):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def _early_bit_flips(content: bytearray, chance: Random) -> bytearray:
    for _ in range(chance.choice((1, 2, 5, 20))):
        if content:
            content[chance.randrange(min(len(content), 400))] ^= 1 << chance.randrange(8)
    return content


def _cut(content: bytearray, chance: Random) -> bytearray:
    length = chance.choice((chance.randrange(64), chance.randrange(len(content) + 1)))
    return content[:length]


def _hole(content: bytearray, chance: Random) -> bytearray:
    start = chance.randrange(len(content) + 1)
    del content[start : start + chance.choice((1, 2, 100, 5_000))]
    return content


def _insertion(content: bytearray, chance: Random) -> bytearray:
    start = chance.randrange(len(content) + 1)
    content[start:start] = chance.randbytes(chance.choice((1, 2, 100, 5_000)))
    return content


def _zeros(content: bytearray, chance: Random) -> bytearray:
    start = chance.randrange(len(content) + 1)
    size = min(chance.choice((4, 100, 5_000)), len(content) - start)
    content[start : start + size] = bytes(size)
    return content


def _repetition(content: bytearray, chance: Random) -> bytearray:
    start = chance.randrange(len(content) + 1)
    piece = content[start : start + chance.choice((16, 500, 8_000))]
    content[start:start] = piece * chance.choice((1, 10, 100))
    return content


def _lying_header(content: bytearray, chance: Random) -> bytearray:
    """An extreme value, in either byte order, in a field of some header."""
    places = list(_places(content))
    if not places:
        return _early_bit_flips(content, chance)
    start = chance.choice(places) + chance.randrange(_HEADER_BYTES)
    form = chance.choice("BHI")
    value = struct.pack(chance.choice("<>") + form, chance.choice(_EXTREMES) & (256 ** struct.calcsize(form) - 1))
    content[start : start + len(value)] = value
    return content


def _lying_format(content: bytearray, chance: Random) -> bytearray:
    """Another rate or number of channels, in the very field that says it."""
    rate = chance.choice((0, 1, 9, 4_000, 7_999, 192_000, 768_000, 0x7FFFFFFF, 0xFFFFFFFF))
    channels = chance.choice((0, 1, 3, 6, 9, 24, 64, 255, 0xFFFF))
    if (at := content.find(b"fmt ")) >= 0 and len(content) >= at + 24:
        struct.pack_into("<HI", content, at + 10, channels, rate)
    elif (at := content.find(b"COMM")) >= 0 and len(content) >= at + 26:
        struct.pack_into(">H", content, at + 8, channels)
        struct.pack_into(">H", content, at + 16, 0x3FFF + chance.randrange(64))  # exponent of the 80-bit rate
    elif (at := content.find(b"fLaC")) >= 0 and len(content) >= at + 26:
        said = rate << 12 | (channels % 8) << 9 | chance.randrange(512)  # 20 bits, 3 bits, and the rest
        struct.pack_into(">I", content, at + 18, said & 0xFFFFFFFF)
    elif (at := content.find(b"OpusHead")) >= 0 and len(content) >= at + 19:
        struct.pack_into("<BHIhB", content, at + 9, channels & 255, rate & 0xFFFF, rate, 0, chance.randrange(3))
    elif (at := content.find(b"\x01vorbis")) >= 0 and len(content) >= at + 16:
        struct.pack_into("<BI", content, at + 11, channels & 255, rate)
    elif (at := content.find(b"mp4a", content.find(b"stsd") + 1)) >= 0 and len(content) >= at + 32:
        struct.pack_into(">H", content, at + 20, channels)
        struct.pack_into(">I", content, at + 28, rate)
    else:
        return _lying_header(content, chance)
    return content


def _odd_floats(content: bytearray, chance: Random) -> bytearray:
    """NaN, infinity and the largest number, where a float file has samples."""
    for _ in range(50):
        at = chance.randrange(100, max(101, len(content) - 8)) // 4 * 4
        if at + 4 <= len(content):
            struct.pack_into("<I", content, at, chance.choice((0x7FC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF)))
    return content


_MUTATIONS: tuple[Callable[[bytearray, Random], bytearray], ...] = (
    _bit_flips,
    _early_bit_flips,
    _cut,
    _hole,
    _insertion,
    _zeros,
    _repetition,
    _lying_header,
    _lying_header,
    _lying_format,
    _lying_format,
    _odd_floats,
)


def _places(content: bytearray) -> Iterator[int]:
    for header in _HEADERS:
        at = content.find(header)
        while at >= 0 and len(content) > at + _HEADER_BYTES + 8:
            yield at + len(header)
            at = content.find(header, at + 1)


def _seed_files(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    sound = mix(noise(2.0, _RATE_HZ, dbfs=-30), clicks(120, 1.9, _RATE_HZ), tone(440, 2.0, _RATE_HZ))
    for name, encoding in _SEEDS.items():
        write(folder / name, sound, _RATE_HZ, metadata=_TAGS, **encoding)  # type: ignore[arg-type]
    write(folder / "surround.flac", np.tile(sound, (3, 1)), _RATE_HZ, metadata=_TAGS)
    write(folder / "mono.wav", sound[:1], _RATE_HZ, metadata=_TAGS)
    return sorted(folder.iterdir())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write mutated media files.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    mutants(wanted.folder, wanted.count, wanted.seed)
