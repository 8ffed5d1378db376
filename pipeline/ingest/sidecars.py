"""Sidecar files, which have a song's name: lyrics (.txt), timed lyrics (.lrc), facts (.json)."""

import codecs
import json
import logging
import os
import posixpath
from collections.abc import Collection

from stages.base import TrackError
from stages.decode import opened

SIDECARS = (".json", ".txt", ".lrc")
_LIMIT = 1 << 20  # bytes that are read; no song's lyrics are longer
_log = logging.getLogger("songmill.manifest")


def read_sidecars(uri: str, there: Collection[str] | None = None) -> dict[str, str]:
    """Fields from a song's sidecars, by their names in the manifest; fields that no sidecar has are absent.

    LRC takes precedence over plain lyrics, and both over `lyrics` in the JSON file. Empty and unreadable files count as
    absent.

    Args:
        uri: of the song.
        there: endings of the sidecars that it has, if they are known: then no others are looked for.
    """
    stem = posixpath.splitext(uri)[0]
    wanted = SIDECARS if there is None else [ending for ending in SIDECARS if ending in there]
    fields = _facts(stem + ".json") if ".json" in wanted else {}
    for ending in (".txt", ".lrc"):
        if ending in wanted and (lyrics := decode_text(_bytes(stem + ending)).strip()):
            fields["lyrics"] = lyrics
    return fields


def sidecar_stamps(uri: str) -> list[int]:
    """Modification times of a local song's sidecars, in ns, 0 for missing ones; an empty list for remote songs."""
    if "://" in uri:
        return []  # three more requests per song would be too many
    stem = posixpath.splitext(uri)[0]
    return [_modified_ns(stem + ending) for ending in SIDECARS]


def _modified_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - called for a million songs; creating a Path takes three times as long
    except OSError:
        return 0


def decode_text(data: bytes) -> str:
    """Text in UTF-8 or, with a byte order mark, UTF-16; any other bytes as Windows-1252, undefined ones replaced."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _facts(uri: str) -> dict[str, str]:
    data = _bytes(uri)
    if not data.strip():
        return {}
    try:
        facts = json.loads(decode_text(data))
    except (ValueError, RecursionError) as error:
        _log.warning("%s: ignored, it is not JSON: %s", uri, error)
        return {}
    if not isinstance(facts, dict):
        _log.warning("%s: ignored, it is not a JSON object", uri)
        return {}
    return {name: text for name, text in facts.items() if isinstance(text, str) and text.strip()}


def _bytes(uri: str) -> bytes:
    try:
        with opened(uri) as file:
            return file.read(_LIMIT)
    except (OSError, TrackError):
        return b""
