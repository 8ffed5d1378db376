"""Reads Protocol Buffers' wire format without a schema: enough to find tensors in verified files."""

from collections import defaultdict
from typing import Any

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The variable-length integer at `at` and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(message: bytes) -> dict[int, list[Any]]:
    """Field number to its values in order: an int for a varint, bytes for everything else.

    Raises:
        ValueError: an unsupported wire type, such as the obsolete groups, so this is not such a message.
    """
    found: dict[int, list[Any]] = defaultdict(list)
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = varint(message, at)
            found[number].append(value)
            continue
        if wire_type == _BYTES:
            size, at = varint(message, at)
        elif wire_type in _FIXED_SIZES:
            size = _FIXED_SIZES[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        found[number].append(message[at : at + size])
        at += size
    return found
