"""Reads a TensorFlow checkpoint of format V2 (tensor bundle) with numpy alone.

`.index` is a LevelDB-style SSTable from variable name to a `BundleEntryProto`; `.data-00000-of-00001` holds the values.
Only what such checkpoints use is supported: one shard, blocks without compression, floats and integers.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.models.convert import protobuf

_FOOTER_BYTES = 48
_DTYPES = {1: "<f4", 3: "<i4", 9: "<i8"}  # tensorflow.DataType


def load(folder: Path) -> dict[str, np.ndarray]:
    """Every variable of the checkpoint whose files in `folder` have no prefix, by its name.

    Raises:
        ValueError: compressed blocks.
    """
    index = (folder / ".index").read_bytes()
    values = (folder / ".data-00000-of-00001").read_bytes()
    return {
        name.decode(): _tensor(protobuf.fields(entry), values)
        for _, block in _block(index, _index_handle(index))
        for name, entry in _block(index, block)
        if name  # the empty key holds the bundle's header
    }


def _index_handle(index: bytes) -> bytes:
    footer = index[-_FOOTER_BYTES:]
    _, at = protobuf.varint(footer, 0)  # offset and size of the meta index
    _, at = protobuf.varint(footer, at)
    return footer[at:]


def _block(index: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of every record in the block at `handle`; each key shares a prefix with the one before."""
    offset, at = protobuf.varint(handle, 0)
    size, _ = protobuf.varint(handle, at)
    if index[offset + size] != 0:
        raise ValueError("compressed block in a TensorFlow checkpoint")
    block = index[offset : offset + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    end = len(block) - 4 * (restarts + 1)
    at, key = 0, b""
    while at < end:
        shared, at = protobuf.varint(block, at)
        unshared, at = protobuf.varint(block, at)
        value_bytes, at = protobuf.varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + value_bytes]
        at += value_bytes


def _tensor(entry: dict[int, list[Any]], values: bytes) -> np.ndarray:
    """BundleEntryProto: dtype = 1, shape = 2 (of dims = 2 of size = 1), offset = 4, size = 5."""
    dims = protobuf.fields(entry[2][0])[2] if 2 in entry else []
    shape = [protobuf.fields(dim).get(1, [0])[0] for dim in dims]
    start = entry.get(4, [0])[0]
    return np.frombuffer(values[start : start + entry[5][0]], _DTYPES[entry[1][0]]).reshape(shape)
