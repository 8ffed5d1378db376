"""Keeps FFmpeg from believing what headers say of sizes: it clears as many bytes before it reads one."""

import ctypes
from functools import cache

import av

_LARGEST = 256 << 20  # bytes, of one piece of memory; a second of 24 channels at 768 kHz takes 70 MiB


@cache
def limit_allocations() -> None:
    """Let FFmpeg fail, in this process and from now on, where it would take more memory at once."""
    libraries = ctypes.CDLL(av._core.__file__)  # a symbol is looked for in all that PyAV is linked with
    libraries.av_max_alloc(ctypes.c_size_t(_LARGEST))
