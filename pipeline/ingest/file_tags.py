"""Fields from a song's own tags: ID3, Vorbis comments and MP4 atoms, read with mutagen."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import mutagen
from mutagen.id3 import ID3
from mutagen.mp4 import MP4Tags

from pipeline.ingest.licenses import find_license
from stages.decode import Unreadable, opened
from stages.decoding.limited_reader import LimitedReader

_log = logging.getLogger("songmill.manifest")
_MAX_BYTES = 32 << 20  # cover art included
_MAX_READS = 100_000
_LONGEST_TEXT = 1 << 20  # as for sidecars

# Field -> its keys in each family of tags, in order of preference.
_ID3 = {
    "title": ("TIT2",),
    "artist": ("TPE1",),
    "album": ("TALB",),
    "language": ("TLAN",),
    "lyrics": ("USLT",),
    "license": ("TXXX:LICENSE", "TXXX:license", "WCOP", "TCOP"),
}
_MP4 = {
    "title": ("©nam",),
    "artist": ("©ART",),
    "album": ("©alb",),
    "language": ("----:com.apple.iTunes:LANGUAGE",),
    "lyrics": ("©lyr",),
    "license": ("----:com.apple.iTunes:LICENSE", "cprt"),
}
_VORBIS = {
    "title": ("title",),
    "artist": ("artist",),
    "album": ("album",),
    "language": ("language",),
    "lyrics": ("lyrics", "unsyncedlyrics"),
    "license": ("license", "copyright"),
}


def read_tags(uri: str) -> dict[str, str]:
    """Fields from a song's tags, by their names in the manifest; fields without a tag are absent.

    `license` is only used if it is an SPDX id or a URL. Missing and damaged files count as having no tags, and so do
    files whose tags are implausibly large.
    """
    try:
        with opened(uri) as file:
            flood = ValueError(f"they take more than {_MAX_BYTES >> 20} MiB, or more than {_MAX_READS:,} pieces")
            reader = LimitedReader(file, _MAX_BYTES, flood, max_reads=_MAX_READS, name=uri)
            tags = getattr(mutagen.File(reader), "tags", None)
    except Unreadable:
        return {}
    except Exception as error:  # mutagen on hostile bytes; whatever it raises must not cost the song
        _log.warning("%s: tags cannot be read: %s", uri, error)
        return {}
    if not tags:
        return {}
    places, texts_of = _family(tags)
    fields = {}
    for field, keys in places.items():
        texts = [text.strip() for key in keys for text in texts_of(key) if len(text) <= _LONGEST_TEXT]
        if field == "license":
            texts = [license for text in texts if (license := find_license(text))]
        if text := next(filter(None, texts), None):
            fields[field] = text
    return fields


def _family(tags: Any) -> tuple[Mapping[str, tuple[str, ...]], Callable[[str], list[str]]]:
    if isinstance(tags, ID3):
        return _ID3, lambda key: [text for frame in tags.getall(key) for text in _id3_texts(frame)]
    places = _MP4 if isinstance(tags, MP4Tags) else _VORBIS
    return places, lambda key: [_text(value) for value in _values(tags.get(key))]


def _id3_texts(frame: Any) -> list[str]:
    """Texts of a frame: a URL frame has its URL, USLT one text, a text frame several."""
    if hasattr(frame, "url"):
        return [frame.url]
    return [frame.text] if isinstance(frame.text, str) else [str(text) for text in frame.text]


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
