"""Sketches of songs, read from the scan table when somebody asks for them: they are most of it, 2 KB a song."""

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.dataset import Layout
from stages.fingerprint import FINGERPRINT

PART = pa.field("part", pa.int64())  # which part of the scan table a row was read from

# Rows come part by part, but for those that were scanned again; a part is half a megabyte to eight.
_KEPT = 8


@dataclass
class SketchReader:
    """Column fingerprint of rows of the scan table."""

    layout: Layout
    _parts: dict[int, pa.Table] = field(default_factory=dict, repr=False)  # those read last

    def __call__(self, rows: pa.Table) -> pa.StructArray:
        """Fingerprints of rows, null where there is none.

        Args:
            rows: columns row_id and `PART`.
        """
        found = []
        for part in pc.unique(rows[PART.name]).sort().to_pylist():
            known, wanted = self._part(part), rows.filter(pc.equal(rows[PART.name], part))["row_id"]
            found.append(known.filter(pc.is_in(known["row_id"], wanted.combine_chunks())))
        if not found:
            return pa.nulls(0, FINGERPRINT)
        every = pa.concat_tables(found)
        places = pc.index_in(rows["row_id"].combine_chunks(), every["row_id"].combine_chunks())
        return every["fingerprint"].combine_chunks().take(places)

    def complete(self, rows: pa.Table) -> pa.Table:
        """The rows with their fingerprints in place of nulls."""
        if "fingerprint" not in rows.column_names:
            return rows
        place = rows.column_names.index("fingerprint")
        return rows.set_column(place, rows.schema.field(place), self(rows))

    def _part(self, part: int) -> pa.Table:
        if part not in self._parts:
            if len(self._parts) == _KEPT:
                del self._parts[next(iter(self._parts))]
            self._parts[part] = pq.read_table(self.layout.scan_file(part), columns=["row_id", "fingerprint"])
        return self._parts[part]
