"""How many Vorbis comments a FLAC or Ogg file claims to have, read before FFmpeg opens it.

FFmpeg compares each comment with all earlier ones: the sixteen megabytes that fit a FLAC header would take it days.
"""

import struct
from typing import BinaryIO

_FLAC_COMMENTS = 4  # type of the block (RFC 9639, section 8.6)
_OGG_HEADS = (b"OpusTags", b"\x03vorbis")  # what the packet begins with
_OGG_BYTES = 1 << 17  # the packet is the second of its stream
_LONGEST_VENDOR = 1 << 10


def claimed_comments(file: BinaryIO) -> int:
    """The number in the header, 0 if there is none. The file is rewound to its beginning."""
    file.seek(0)
    head = file.read(_OGG_BYTES)
    if head.startswith(b"fLaC"):
        found = _flac_block(file)
    elif head.startswith(b"OggS"):
        found = _ogg_packet(head)
    else:
        found = b""
    file.seek(0)
    return _count(found)


def _flac_block(file: BinaryIO) -> bytes:
    """The beginning of the block that holds comments."""
    file.seek(4)
    while len(header := file.read(4)) == 4:
        if header[0] & 0x7F == _FLAC_COMMENTS:
            return file.read(_LONGEST_VENDOR + 8)
        if header[0] & 0x80:  # the last one
            break
        file.seek(int.from_bytes(header[1:], "big"), 1)
    return b""


def _ogg_packet(head: bytes) -> bytes:
    """The packet of comments without its magic bytes; it begins on the second page."""
    page = head.find(b"OggS", 4)
    packet = head[page + 27 + head[page + 26] :] if 0 <= page < len(head) - 27 else b""
    start = next((len(magic) for magic in _OGG_HEADS if packet.startswith(magic)), 4)  # FLAC's begins as its block does
    return packet[start:]


def _count(comments: bytes) -> int:
    if len(comments) < 8:
        return 0
    (vendor_bytes,) = struct.unpack_from("<I", comments)
    if len(comments) < vendor_bytes + 8:
        return 0  # truncated, or a vendor string of thousands of bytes: damaged
    return int(struct.unpack_from("<I", comments, 4 + vendor_bytes)[0])
