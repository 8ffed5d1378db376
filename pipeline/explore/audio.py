"""What there is to hear of a row: its preview beside the shard, else the song itself where that is a file here.

Nothing else is ever opened: a request names a row, and the dataset says which file that is.
"""

import hashlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pipeline.explore.index import Changed, Place, read_at
from pipeline.explore.ranges import Content
from pipeline.pages.sound import Sound
from schemas.dataset import Layout, unit_of
from stages import preview

_TYPES = {
    ".aac": "audio/aac",
    ".aif": "audio/aiff",
    ".aiff": "audio/aiff",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".mp3": "audio/mpeg",
    ".mp4": "audio/mp4",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
}


class NothingToHear(Exception):  # noqa: N818
    """A sentence for the listener."""


@dataclass(frozen=True)
class Preview:
    """A short excerpt of a song.

    Attributes:
        data: Ogg Opus.
        start_s: where in the song it begins.
        length_s: how long it is.
    """

    data: bytes
    start_s: float
    length_s: float


def open_content(layout: Layout, place: Place) -> Content:
    """What to serve for a row.

    Raises:
        NothingToHear: neither preview nor song are there.
    """
    if excerpt := read_preview(layout, place):
        version = hashlib.blake2b(excerpt.data, digest_size=8).hexdigest()
        return Content(io.BytesIO(excerpt.data), len(excerpt.data), preview.MEDIA_TYPE, version)
    return _open_song(place.uri)


def sound_of(layout: Layout, place: Place, duration_s: float | None) -> Sound:
    """The sound of a row for its page."""
    name = quote(place.row_id, safe="")
    if excerpt := read_preview(layout, place):
        return Sound(
            f"/audio/{name}",
            start_s=excerpt.start_s,
            length_s=excerpt.length_s,
            peaks_src=f"/waveform/{name}",
            remark="A preview of the song.",
        )
    try:
        _open_song(place.uri).file.close()
    except NothingToHear as problem:
        return Sound(None, remark=str(problem))
    return Sound(f"/audio/{name}", length_s=duration_s or 0.0, peaks_src=f"/waveform/{name}")


def read_preview(layout: Layout, place: Place) -> Preview | None:
    """The preview of a row; None where nobody has made one."""
    unit = unit_of(place.file)
    if unit is None or place.file.parent != layout.shards:
        return None
    try:
        row = read_at(layout.feature_file("preview", unit), place.number, place.row_id, ["row_id", "preview"])
        found = row["preview"]
        if not found or found["codec"] != preview.CODEC or not found["data"]:
            return None
        return Preview(found["data"], found["start_s"], found["duration_s"])
    except (Changed, KeyError):  # nobody has made one, or another stage than songmill's has
        return None


def _open_song(uri: str | None) -> Content:
    path = _local(uri)
    media_type = _TYPES.get(path.suffix.lower())
    if media_type is None:
        raise NothingToHear(f"The song cannot be played: {path.suffix or 'a file without suffix'} is no audio format.")
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # a pipe must not hold the server up
    except OSError as problem:
        raise NothingToHear(f"The song cannot be played: {uri}: {problem.strerror}.") from problem
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise NothingToHear(f"The song cannot be played: {uri} is no file.")
    return Content(file, status.st_size, media_type, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def _local(uri: str | None) -> Path:
    """The file of a uri. A local path may hold anything, a question mark as well."""
    if not uri:
        raise NothingToHear("The row names no song.")
    if "://" not in uri:
        return Path(uri)
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise NothingToHear(f"The song lies elsewhere ({uri}) and has no preview.")
    return Path(unquote(parts.path))
