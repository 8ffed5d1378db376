"""A file of which only so much may be read: what parsers of headers and tags get, so that no file can flood them."""

import math
import time
from typing import BinaryIO


class LimitedReader:
    """Passes reads on to a file until they come to so many bytes, are too many or take too long.

    Args:
        file: read from where it stands.
        max_bytes: in all reads together.
        error: raised by the read that goes beyond any of the limits.
        max_s: seconds from now on; FFmpeg takes hours for a megabyte of tags of ten bytes each.
        max_reads: parsers make an object of each piece they read, which takes more memory than the piece.
        name: by whose ending a parser may guess the format; PyAV's word for no name leaves it to the content.
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
        """Bytes from the file."""
        data = self._file.read(size)
        self._bytes_left -= len(data)
        self._reads_left -= 1
        if self._bytes_left < 0 or self._reads_left < 0 or time.monotonic() > self._deadline:
            raise self._error
        return data

    def lift(self) -> None:
        """From here on everything may be read."""
        self._bytes_left = self._reads_left = self._deadline = math.inf
