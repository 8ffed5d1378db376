"""Read fingerprint sketches from the scan table on demand: at 2 KB per song they are most of its data."""

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from schemas.dataset import Layout
from schemas.storage.parquet import read_parquet
from stages.fingerprint import FINGERPRINT

PART = pa.field("part", pa.int64())  # number of the part of the scan table that a row is in

# Parts to keep in memory, each 0.5 to 8 MB. Rows are requested part by part, except for those that were scanned again.
_CACHED_PARTS = 8


@dataclass
class SketchReader:
    """Reads column fingerprint for rows of the scan table, with a cache of the last parts."""

    layout: Layout
    _parts: dict[int, pa.Table] = field(default_factory=dict, repr=False)  # oldest first

    def __call__(self, rows: pa.Table) -> pa.StructArray:
        """Fingerprints of the rows, in their order; null if a row has none.

        Args:
            rows: table with columns row_id and `PART`.
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
        """The rows with column fingerprint filled in, if they have that column."""
        if "fingerprint" not in rows.column_names:
            return rows
        place = rows.column_names.index("fingerprint")
        return rows.set_column(place, rows.schema.field(place), self(rows))

    def _part(self, part: int) -> pa.Table:
        if part not in self._parts:
            if len(self._parts) == _CACHED_PARTS:
                del self._parts[next(iter(self._parts))]
            columns = ["row_id", "fingerprint"]
            self._parts[part] = read_parquet(self.layout.store, self.layout.scan_file(part), columns)
        return self._parts[part]
