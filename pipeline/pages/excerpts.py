"""A row's audio for a self-contained page: the preview beside the shard, or an excerpt encoded on the fly."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.ingest.identity import track_id
from pipeline.pages.sound import Sound
from pipeline.pages.waveform import NoWaveform, peaks
from schemas import columns
from schemas.commits import committed_files
from schemas.dataset import Layout, folder_of
from schemas.storage.parquet import schema_of
from stages import preview
from stages.decode import DecodeParams, decode_file

SHORTEST_S = 2.0  # anything shorter tells nothing
_BARS = 240
# Whatever can be decoded of a damaged file is played; its verdict already says that it is damaged.
_LENIENT = DecodeParams(missing_s=86_400.0, lost_ratio=1.0)


@dataclass(frozen=True)
class Excerpt:
    """Ogg Opus of a part of a song, or a sentence that explains why there is none."""

    data: bytes | None
    start_s: float = 0.0
    duration_s: float = 0.0
    remark: str | None = None

    @property
    def page_bytes(self) -> int:
        """Bytes that its audio takes in a page, as base64."""
        return 0 if self.data is None else len(self.data) * 4 // 3

    def at_most(self, page_bytes: int) -> "Excerpt":
        """Its beginning, shortened to take no more than this many bytes of a page."""
        if self.data is None or self.page_bytes <= page_bytes:
            return self
        duration_s = max(self.duration_s * page_bytes / self.page_bytes, SHORTEST_S)
        return replace(self, data=preview.shortened(self.data, duration_s), duration_s=min(duration_s, self.duration_s))

    def sound(self) -> Sound:
        """The sound that a page plays."""
        if self.data is None:
            return Sound(None, remark=self.remark)
        src = f"data:{preview.MEDIA_TYPE};base64,{base64.b64encode(self.data).decode()}"
        try:
            bars = peaks(io.BytesIO(self.data), _BARS)
        except NoWaveform as error:
            return Sound(None, remark=f"No sound: its preview is damaged ({error}).")
        return Sound(src, self.start_s, self.duration_s, bars, remark=self.remark)


def stored_excerpts(layout: Layout, row_ids: Sequence[str]) -> dict[str, Excerpt]:
    """Row id -> the preview beside its shard, for rows that have one in a format that browsers play."""
    store = layout.store
    names = [name for name in committed_files(layout) if folder_of(name) == layout.features("preview")]
    addresses = [store.address(name) for name in names if _is_playable(schema_of(store, name))]
    if not addresses:
        return {}
    with duckdb.connect() as connection:
        store.let_read(connection)
        found = connection.execute(
            "select row_id, preview.data, preview.start_s, preview.duration_s from read_parquet(?) "
            "where row_id in (select unnest(?::varchar[])) and preview.codec = ? and preview.data is not null",
            [addresses, list(row_ids), preview.CODEC],
        ).fetchall()
    return {row_id: Excerpt(bytes(data), start_s, duration_s) for row_id, data, start_s, duration_s in found}


def make_excerpt(row: Mapping[str, Any], seconds: float, kbps: int) -> Excerpt:
    """The loudest part of a row's song, from its file; from a damaged file, of whatever can be decoded."""
    uri = row.get("uri")
    if not uri:
        return Excerpt(None, remark="No sound: the row has no uri.")
    try:
        if row.get("track_id") and track_id(uri) != row["track_id"]:
            return Excerpt(None, remark=f"No sound: {uri} is not the file that was curated; its bytes have changed.")
        sound = decode_file(uri, {"pcm"}, _LENIENT).pcm
        if sound is None:
            return Excerpt(None, remark=f"No sound: {uri} is longer than {_LENIENT.limit_s / 60:g} minutes.")
        made = preview.Preview(preview.PreviewParams(seconds=seconds, kbps=kbps)).process({"pcm": sound})["preview"]
    except Exception as error:  # whatever storage or a decoder raises may only cost this row its sound
        return Excerpt(None, remark=f"No sound: {error}")
    return Excerpt(made["data"], made["start_s"], made["duration_s"])


def _is_playable(schema: pa.Schema) -> bool:
    """Whether a file of previews has the schema of songmill's own stage; a user's stage may write anything."""
    type = schema.field("preview").type
    return pa.types.is_struct(type) and {f.name for f in columns.PREVIEW} <= {f.name for f in type}
