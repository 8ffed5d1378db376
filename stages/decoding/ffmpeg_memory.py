"""Limits FFmpeg's allocations: it trusts the sizes in headers, and zeroes that much memory before reading a byte."""

import ctypes
from functools import cache

import av

_LARGEST = 256 << 20  # bytes in one allocation; a second of 24 channels at 768 kHz takes 70 MiB


@cache
def limit_allocations() -> None:
    """From now on, make FFmpeg in this process fail where it would allocate more than 256 MiB at once."""
    libraries = ctypes.CDLL(av._core.__file__)  # symbols are looked up in everything that PyAV is linked with
    libraries.av_max_alloc(ctypes.c_size_t(_LARGEST))
