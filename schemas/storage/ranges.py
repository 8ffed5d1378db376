"""An object as a file to seek and read in."""

import io

from schemas.storage.objects import Objects


class Ranges(io.RawIOBase):
    """Every read is a request for just those bytes: right for readers that plan their reads, such as Arrow."""

    def __init__(self, objects: Objects, key: str, size: int) -> None:
        self._objects, self._key, self._size, self._at = objects, key, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins, in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move there; no request is made."""
        self._at = max(0, {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes; fewer at the end.

        Raises:
            StorageError: the object is gone, or cannot be read.
        """
        left = max(0, self._size - self._at)
        count = left if size is None or size < 0 else min(size, left)
        if not count:
            return b""
        content = self._objects.read_range(self._key, self._at, count)
        self._at += len(content)
        return content

    def readinto(self, buffer: "bytearray | memoryview[int]") -> int:  # type: ignore[override]
        """As `read`, for `io.BufferedReader`."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
