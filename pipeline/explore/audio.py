"""The audio of a row: its preview beside the shard, else the song itself if that is a local file.

Nothing else is ever opened: a request names a row, and the dataset determines the file.
"""

import hashlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pipeline.explore.index import Changed, Place, read_row
from pipeline.explore.ranges import Content
from pipeline.pages.sound import Sound
from schemas.dataset import Layout, folder_of, unit_of
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
    """There is no audio for a row; the message is a sentence for the listener."""


@dataclass(frozen=True)
class Preview:
    """A short excerpt of a song.

    Attributes:
        data: an Ogg Opus file.
        start_s: its start in the song, in seconds.
        length_s: its length in seconds.
    """

    data: bytes
    start_s: float
    length_s: float


def open_content(layout: Layout, place: Place) -> Content:
    """What to serve for a row.

    Raises:
        NothingToHear: there is neither a preview nor a local song.
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
    """The preview of a row; None if there is none."""
    unit = unit_of(place.file)
    if unit is None or folder_of(place.file) != layout.shards:
        return None
    try:
        row = read_row(layout.store, place, ["row_id", "preview"], file=layout.feature_file("preview", unit))
        found = row["preview"]
        if not found or found["codec"] != preview.CODEC or not found["data"]:
            return None
        return Preview(found["data"], found["start_s"], found["duration_s"])
    except (Changed, KeyError):  # there is none, or a stage other than songmill's wrote it
        return None


def _open_song(uri: str | None) -> Content:
    path = _local(uri)
    media_type = _TYPES.get(path.suffix.lower())
    if media_type is None:
        raise NothingToHear(f"The song cannot be played: {path.suffix or 'a file without suffix'} is no audio format.")
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # a pipe must not block the server
    except OSError as problem:
        raise NothingToHear(f"The song cannot be played: {uri}: {problem.strerror}.") from problem
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise NothingToHear(f"The song cannot be played: {uri} is not a file.")
    return Content(file, status.st_size, media_type, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def _local(uri: str | None) -> Path:
    """The file of a uri. A local path may contain anything, including question marks."""
    if not uri:
        raise NothingToHear("The row has no uri.")
    if "://" not in uri:
        return Path(uri)
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise NothingToHear(f"The song is not a local file ({uri}) and has no preview.")
    return Path(unquote(parts.path))
