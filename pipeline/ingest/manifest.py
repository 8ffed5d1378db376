"""Lists the songs of a folder, a glob or a manifest as a table with one row per song, without opening any of them."""

import csv
import io
import json
import logging
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline.errors import DataProblem
from pipeline.ingest.file_tags import read_tags
from pipeline.ingest.languages import normalize_language
from pipeline.ingest.left_out import LeftOut
from pipeline.ingest.licenses import normalize_license
from pipeline.ingest.sidecars import SIDECARS, read_sidecars, sidecar_stamps
from schemas import columns
from schemas.storage.input_files import Buckets, file_system

MANIFEST = pa.schema(
    [
        *(field for field in columns.IDENTITY if field.name != "track_id"),
        ("size", pa.int64()),  # bytes; null if the file is missing
        ("stamp", pa.string()),  # changes when the file does; from its etag, version or modification time
        ("sidecars", pa.list_(pa.string())),  # endings of the sidecars that are there; null where nobody has looked
    ]
)
EXTENSIONS = frozenset([".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".m4a", ".aac", ".mp4", ".aif", ".aiff"])

# Manifest column -> identity column. Sidecars and tags use the same names.
_FIELDS = {
    "title": "title",
    "artist": "artist",
    "album": "album",
    "language": "language",
    "lyrics": "given_lyrics",
    "license": "license",
    "source": "source",
}
_STAMPS = ("ETag", "etag", "version_id", "generation", "mtime", "LastModified", "last_modified", "updated", "created")
_STAT_THREADS = 32  # a stat of remote storage is mostly waiting
_TASKS_A_THREAD = 64  # rows are batched: one task per row would cost more than its stat, and 2 KB of memory
_LISTED = 10  # lines that an error lists

_log = logging.getLogger("songmill.manifest")


class ManifestError(DataProblem):
    """The input cannot be listed; the message names the file and its lines."""


@dataclass(frozen=True)
class Listing:
    """The songs of an input as a table of schema `MANIFEST`, and what else was there."""

    songs: pa.Table
    left_out: LeftOut


def read_manifest(source: str) -> pa.Table:
    """The table of songs alone; see `list_songs`."""
    return list_songs(source).songs


def list_songs(source: str) -> Listing:
    """List the songs of `source` in the order of their uris.

    Args:
        source: a folder (searched recursively; hidden files and folders are left out), a glob, or a manifest: a .jsonl,
            .csv or .parquet file with `uri` and any of title, artist, album, language, lyrics, license, source. Local
            or any fsspec URI. A manifest's relative uris are relative to its folder.

    Returns:
        A table of schema `MANIFEST`. Local files have absolute paths as uris. In a folder or glob, only regular files
        and links to them count as songs. Every entry of a manifest is a row, without size and stamp if there is no such
        file. Fields that a manifest leaves open are null; see `describe`.

    Raises:
        ManifestError: nothing was found, the manifest is not readable, or uris are missing or not unique.
    """
    fs, path = _file_system(source)
    left_out = LeftOut()
    if fs.isdir(path):
        rows = _listed(fs, fs.find(path, detail=True), path, left_out, with_sidecars=isinstance(fs, Buckets))
    elif _extension(path) in _READERS and fs.isfile(path):
        rows = _with_stat(_manifest_rows(fs, path))
    elif fs.isfile(path):
        rows = _listed(fs, {path: fs.info(path)}, posixpath.dirname(path), left_out)
    else:
        rows = _listed(fs, fs.glob(path, detail=True), posixpath.dirname(re.split(r"[*?\[]", path)[0]), left_out)
    if not rows:
        raise ManifestError(
            f"{source}: no songs; expected a folder or glob of {' '.join(sorted(EXTENSIONS))} or a manifest"
            + (f" ({left_out.sentence})" if left_out.sentence else "")
        )
    return Listing(pa.Table.from_pylist(sorted(rows, key=lambda row: row["uri"]), MANIFEST), left_out)


def _file_system(source: str) -> tuple[AbstractFileSystem, str]:
    try:
        return file_system(source)
    except (ImportError, ValueError) as error:  # its driver is not installed, or the protocol does not exist
        raise ManifestError(f"{source}: {error}") from error


def describe(uri: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's identity fields, completed from the song's sidecars, else from its tags. Opens the files."""
    given = {field: row.get(column) for field, column in _FIELDS.items()}
    found: dict[str, str | None] = {}
    for layer in (read_tags(uri), read_sidecars(uri, row.get("sidecars")), given):
        found |= {field: text for field, text in layer.items() if text}
    found["license"] = normalize_license(found.get("license"))
    found["language"] = normalize_language(found.get("language"))
    return {**row, **{column: found.get(field) for field, column in _FIELDS.items()}}


def fill_defaults(rows: pa.Table, *, license: str | None, source: str | None) -> pa.Table:
    """The rows with defaults for `license` and `source` where a song has none: a last resort after `describe`."""
    for column, default in (("license", normalize_license(license)), ("source", source)):
        if default:
            rows = rows.set_column(
                rows.column_names.index(column), MANIFEST.field(column), rows[column].fill_null(default)
            )
    return rows


def row_id(uri: str) -> str:
    """Identity of a manifest entry: 128 bits of blake2b, hexadecimal."""
    return blake2b(uri.encode(), digest_size=16).hexdigest()


def _listed(
    fs: AbstractFileSystem,
    files: Mapping[str, Mapping[str, Any]],
    root: str,
    left_out: LeftOut,
    *,
    with_sidecars: bool = False,
) -> list[dict[str, Any]]:
    """A row for each song; all other files that are not hidden are counted as left out.

    With their sidecars if the listing has them: looking for them would be three requests a song.
    """
    rows = []
    for path, info in files.items():
        if info["type"] == "directory" or _is_hidden(path, root):
            continue
        shown = path.removeprefix(root).lstrip("/")
        song = _followed(info)
        if song is None:
            (left_out.linked_folders if Path(path).is_dir() else left_out.not_regular).append(shown)
        elif _extension(path) not in EXTENSIONS:
            left_out.count_ending(_extension(path))
        elif not _is_text(path):
            left_out.unreadable_names.append(ascii(shown)[1:-1])
        else:
            beside = _beside(path, files) if with_sidecars else None
            rows.append(_row(_uri(fs, path), song, sidecars=beside))
    return rows


def _beside(path: str, files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Ending -> etag, of the sidecars of a song that a listing has."""
    stem = posixpath.splitext(path)[0]
    return {ending: str(files[stem + ending].get("etag")) for ending in SIDECARS if stem + ending in files}


def _followed(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Info about a file, or about the target of a local link. None if it is not a regular file."""
    if not info.get("islink"):
        return None if info.get("type") == "other" else info
    try:
        target = Path(info["name"]).stat()
    except OSError:
        return None
    return {"size": target.st_size, "mtime": target.st_mtime} if stat.S_ISREG(target.st_mode) else None


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith(".") for part in path.removeprefix(root).split("/"))


def _is_text(path: str) -> bool:
    """Whether a path is UTF-8: other bytes are decoded to surrogates, which a table cannot hold."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _row(
    uri: str,
    info: Mapping[str, Any] | None,
    given: Mapping[str, str | None] | None = None,
    sidecars: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    identity = {column: (given or {}).get(field) for field, column in _FIELDS.items()}
    identity["license"] = normalize_license(identity["license"])
    identity["language"] = normalize_language(identity["language"])
    return {
        "row_id": row_id(uri),
        "uri": uri,
        **identity,
        "size": info and info.get("size"),
        "stamp": info and _stamp(uri, info, identity, sidecars),
        "sidecars": None if sidecars is None else [*sidecars],
    }


def _stamp(
    uri: str,
    info: Mapping[str, Any],
    identity: Mapping[str, str | None],
    sidecars: Mapping[str, str] | None,
) -> str:
    """A digest that changes when the song, its manifest entry or a sidecar does, of a remote song one that is known."""
    song = next((info[key] for key in _STAMPS if info.get(key)), None)
    beside = sidecar_stamps(uri) if sidecars is None else sorted(sidecars.items())
    facts = [str(song), sorted((name, text) for name, text in identity.items() if text), beside]
    return blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


def _manifest_rows(fs: AbstractFileSystem, path: str) -> list[dict[str, str | None]]:
    """The manifest's rows with absolute uris."""
    name = posixpath.basename(path)
    with fs.open(path, "rb") as file:
        numbered = list(_READERS[_extension(path)](file, name))
    _warn_of_unknown(name, (key for _, row in numbered for key in row))
    rows = {line: _texts(name, line, row) for line, row in numbered}
    if empty := [line for line, row in rows.items() if not row["uri"]]:
        raise ManifestError(f"{name}: no uri in {_lines(empty)}")
    folder = _uri(fs, posixpath.dirname(path))
    for row in rows.values():
        row["uri"] = _resolved(row["uri"], folder, name)
    counts = Counter(row["uri"] for row in rows.values())
    if twice := [line for line, row in rows.items() if counts[row["uri"]] > 1]:
        raise ManifestError(f"{name}: the same uri more than once in {_lines(twice)}")
    return list(rows.values())


def _read_jsonl(file: Any, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise ManifestError(f"{name}: line {line} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ManifestError(f"{name}: line {line} is not an object")
        yield line, row


def _read_csv(file: Any, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), restval="")
    try:
        if "uri" not in (reader.fieldnames or ()):
            raise ManifestError(f"{name}: line 1 has no column uri; it has {', '.join(reader.fieldnames or ())}")
        for row in reader:
            if None in row:
                raise ManifestError(f"{name}: line {reader.line_num} has more fields than line 1")
            yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise ManifestError(f"{name}: line {reader.line_num + 1}: {error}") from error


def _read_parquet(file: Any, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ManifestError(f"{name}: {error}") from error
    names = parquet.schema_arrow.names
    if "uri" not in names:
        raise ManifestError(f"{name}: no column uri; it has {', '.join(names)}")
    _warn_of_unknown(name, names)
    yield from enumerate(parquet.read([n for n in names if n in ("uri", *_FIELDS)]).to_pylist(), 1)


_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def _texts(name: str, line: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The known fields as text; blank ones are null."""
    texts = {}
    for key in ("uri", *_FIELDS):
        value = row.get(key)
        if not isinstance(value, str | int | float | None):
            raise ManifestError(f"{name}: line {line}: {key} is not text")
        # broken JSON may contain lone surrogates, which a table cannot hold
        texts[key] = (str(value).strip().encode("utf-8", "replace").decode() or None) if value is not None else None
    return texts


def _warn_of_unknown(name: str, keys: Iterable[str]) -> None:
    if unknown := sorted(set(keys) - {"uri", *_FIELDS}):
        _log.warning("%s: unknown columns are left out: %s", name, ", ".join(unknown))


def _with_stat(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    size = 1 + len(rows) // (_STAT_THREADS * _TASKS_A_THREAD)
    pieces = [rows[start : start + size] for start in range(0, len(rows), size)]
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        infos = chain.from_iterable(pool.map(lambda piece: [_stat(row["uri"]) for row in piece], pieces))
        return [_row(row["uri"], info, row) for row, info in zip(rows, infos, strict=True)]


def file_is_there(uri: str) -> bool:
    """Whether a song's file can be found."""
    return _stat(uri) is not None


def _stat(uri: str) -> Mapping[str, Any] | None:
    try:
        if "://" not in uri:
            return _followed({"name": uri, "islink": True})
        fs, path = file_system(uri)
        return fs.info(path)  # type: ignore[no-any-return]
    except (OSError, ValueError):  # ValueError: no file system allows such a name
        return None


def _resolved(uri: str, folder: str, name: str) -> str:
    try:
        return _resolve(uri, folder)
    except (ValueError, ImportError) as error:
        raise ManifestError(f"{name}: uri {uri!r}: {error}") from error


def _resolve(uri: str, folder: str) -> str:
    """An absolute uri: as it is, or a local path, or relative to the manifest's folder."""
    if "://" not in uri and not uri.startswith("/"):
        uri = f"{folder.rstrip('/')}/{uri}"
    if "://" not in uri:
        return posixpath.normpath(uri)  # fsspec would take "::" in a name for a chain of file systems
    fs, path = file_system(uri)
    return _uri(fs, posixpath.normpath(path) if "file" in fs.protocol else path)


def _uri(fs: AbstractFileSystem, path: str) -> str:
    return path if "file" in fs.protocol else fs.unstrip_protocol(path)


def _extension(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _lines(lines: list[int]) -> str:
    more = f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:_LISTED]))}{more}"
