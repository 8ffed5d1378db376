"""A song's identity: the digest of its bytes, its identity columns, and what its place in the dataset depends on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.ingest.manifest import describe
from schemas import columns
from stages.base import TrackError
from stages.decode import opened

_READ_BYTES = 1 << 20
_in_order = json.JSONEncoder(sort_keys=True).encode  # created once because there are millions of rows


def track_id(uri: str) -> str:
    """Content identity: 128 bits of blake2b over the file's bytes, hexadecimal.

    Raises:
        Unreadable: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    with opened(uri) as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def identify(rows: pa.Table) -> pa.Table:
    """Complete identity columns from sidecars and tags, and add track ids, null for unreadable files."""
    names = [name for name in (*columns.IDENTITY.names, "sidecars") if name in rows.column_names]
    verdicts = rows["verdict"].to_pylist()
    found = [
        identified(row) if verdict["status"] == "kept" else row
        for row, verdict in zip(rows.select(names).to_pylist(), verdicts, strict=True)
    ]
    for field in columns.IDENTITY:
        values = pa.array([encodable(row.get(field.name)) for row in found], field.type)
        if field.name in rows.column_names:
            rows = rows.set_column(rows.column_names.index(field.name), field, values)
        else:
            rows = rows.append_column(field, values)
    return rows


def require_same_bytes(rows: pa.Table) -> pa.Table:
    """Fail rows whose file is gone or differs from the one that was curated: features would be of another song."""
    verdicts = rows["verdict"].to_pylist()
    for verdict, uri, known in zip(verdicts, rows["uri"].to_pylist(), rows["track_id"].to_pylist(), strict=True):
        if verdict["status"] == "kept" and (problem := _identity_problem(uri, known)):
            reason, message = problem
            verdict |= {"status": "failed", "stage": "identity", "reason": reason, "message": message}
    return rows.set_column(rows.column_names.index("verdict"), "verdict", pa.array(verdicts, columns.VERDICT))


def basis(row: Mapping[str, Any]) -> str:
    """Digest of what a committed row's place depends on: identity columns, and which row it is a copy of."""
    facts = {name: row.get(name) for name in columns.IDENTITY.names}
    facts["duplicate_of"] = (row.get("dedup") or {}).get("duplicate_of")
    return hashlib.blake2b(_in_order(facts).encode(), digest_size=8).hexdigest()


def identified(row: Mapping[str, Any], track: str | None = None) -> dict[str, Any]:
    """A manifest row with its identity columns completed from sidecars and tags; `track` is its track id if known."""
    uri = str(row["uri"])
    try:
        return {**describe(uri, row), "track_id": track or track_id(uri)}
    except Exception:  # hostile bytes or failing storage; decode opens the same file and reports what is wrong with it
        return {**row, "track_id": track}


def _identity_problem(uri: str, known: str) -> tuple[str, str] | None:
    try:
        found = track_id(uri)
    except TrackError as error:
        return type(error).__name__, str(error)
    return None if found == known else ("ChangedFile", f"{uri}: its bytes are not those that were curated")


def encodable(text: str | None) -> str | None:
    """Text that a table can hold, with lone surrogates replaced, which broken JSON may contain."""
    return None if text is None else text.encode("utf-8", "replace").decode()
