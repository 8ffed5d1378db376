"""A file that allows a limited amount of reading, for parsers of headers and tags, so that no file can flood them."""

import math
import time
from typing import BinaryIO


class LimitedReader:
    """Passes reads on to a file until they exceed a number of bytes, a number of calls or a time limit.

    Args:
        file: read from its current position.
        max_bytes: limit for all reads together.
        error: raised by the read that exceeds any of the limits.
        max_s: seconds from now on; FFmpeg takes hours for a megabyte of ten-byte tags.
        max_reads: limit for the number of reads, because parsers make an object of each piece, larger than the piece.
        name: a parser may guess the format from its suffix; PyAV's default for nameless files leaves it to the content.
    """

    def __init__(
        self,
        file: BinaryIO,
        max_bytes: float,
        error: Exception,
        *,
        max_s: float = 120.0,
        max_reads: float = math.inf,
        name: str = "<none>",
    ) -> None:
        self._file = file
        self._bytes_left = max_bytes
        self._reads_left = max_reads
        self._deadline = time.monotonic() + max_s
        self._error = error
        self.name = name
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes from the file.

        Raises:
            Exception: the `error` given, once a limit is exceeded.
        """
        data = self._file.read(size)
        self._bytes_left -= len(data)
        self._reads_left -= 1
        if self._bytes_left < 0 or self._reads_left < 0 or time.monotonic() > self._deadline:
            raise self._error
        return data

    def lift(self) -> None:
        """Remove all limits from here on."""
        self._bytes_left = self._reads_left = self._deadline = math.inf
