"""HTTP range requests (RFC 9110): a player requests the part that it is about to play."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)
_BLOCK = 64 * 1024


class Unsatisfiable(ValueError):  # noqa: N818
    """The range starts beyond the end."""


@dataclass(frozen=True)
class Content:
    """Something to serve.

    Attributes:
        file: open, at any position; closed once it is served.
        size: its length in bytes.
        media_type: its media type.
        version: differs whenever the bytes may differ.
    """

    file: BinaryIO
    size: int
    media_type: str
    version: str


def serve(request: Request, content: Content) -> Response:
    """Answer a GET or HEAD request with the requested part."""
    tag = f'"{content.version}"'
    headers = {"Accept-Ranges": "bytes", "ETag": tag, "Cache-Control": "private, no-cache"}
    asked = request.headers.get("range") if request.headers.get("if-range", tag) == tag else None
    try:
        part = part_of(asked, content.size)
    except Unsatisfiable:
        content.file.close()
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{content.size}"})
    start, end = part or (0, content.size)
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    status = 206 if part else 200
    if request.method == "HEAD":
        content.file.close()
        return Response(status_code=status, headers=headers, media_type=content.media_type)
    return StreamingResponse(_blocks(content.file, start, end), status, headers, content.media_type)


def part_of(asked: str | None, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a range; None for everything, also for several ranges or an invalid one.

    Raises:
        Unsatisfiable: it starts beyond the end.
    """
    match = _RANGE.fullmatch((asked or "").replace(" ", ""))
    first, last = match.groups() if match else ("", "")
    if (first and last and int(first) > int(last)) or not (first or last):
        return None
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise Unsatisfiable(asked)
    return start, end


def _blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (block := file.read(min(_BLOCK, end - start))):
            start += len(block)
            yield block
