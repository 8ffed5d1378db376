"""What lies beside a song under the same name: lyrics (.txt), timed lyrics (.lrc), facts (.json)."""

import codecs
import json
import logging
import posixpath

import fsspec

_LIMIT = 1 << 20  # bytes; what is longer is no song's lyrics
_log = logging.getLogger("songmill.manifest")


def read_sidecars(uri: str) -> dict[str, str]:
    """Fields from the files beside a song, by the names of the manifest; a field that none of them has is absent.

    LRC comes before plain lyrics, both before `lyrics` of the JSON file. Empty and unreadable files count as absent.
    """
    stem = posixpath.splitext(uri)[0]
    fields = _facts(stem + ".json")
    for extension in (".txt", ".lrc"):
        if lyrics := decode_text(_bytes(stem + extension)).strip():
            fields["lyrics"] = lyrics
    return fields


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
    except ValueError as error:
        _log.warning("%s: not used, it is no JSON: %s", uri, error)
        return {}
    if not isinstance(facts, dict):
        _log.warning("%s: not used, it holds no object", uri)
        return {}
    return {name: text for name, text in facts.items() if isinstance(text, str) and text.strip()}


def _bytes(uri: str) -> bytes:
    try:
        with fsspec.open(uri, "rb") as file:
            return file.read(_LIMIT)
    except OSError:
        return b""
