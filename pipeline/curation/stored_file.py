"""One Parquet file of a committed unit, read a row group at a time."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import accumulate
from typing import Any

import pyarrow as pa

from schemas import columns
from schemas.dataset import FOOTER_FINGERPRINTS
from schemas.storage.parquet import open_parquet
from schemas.storage.store import Store


class StoredFile:
    """Reads reusable columns from one file of a unit.

    The identity columns are read at once. Other columns, which may be megabytes per row, are read by `take`, and only
    the last row group stays in memory since rows are requested in the file's order.

    Attributes:
        identities: row id -> those identity columns that the file has.
        columns: names of the columns whose fingerprint is the run's.
    """

    def __init__(self, store: Store, name: str, fingerprints: Mapping[str, str]) -> None:
        self._store, self._name = store, name
        with open_parquet(store, name) as file:
            self._metadata = file.metadata
            schema = file.schema_arrow
            made_with = json.loads((schema.metadata or {}).get(FOOTER_FINGERPRINTS, b"{}"))
            names = [name for name in schema.names if name in columns.IDENTITY.names]
            known = file.read(names).to_pylist()
        same = {name for name, fingerprint in fingerprints.items() if made_with.get(name) == fingerprint}
        self.columns = same & {*schema.names}
        self.identities: dict[str, dict[str, Any]] = {row["row_id"]: row for row in known}
        self._places = {row["row_id"]: place for place, row in enumerate(known)}
        sizes = [self._metadata.row_group(group).num_rows for group in range(self._metadata.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]
        self._last: tuple[int, pa.Table] | None = None

    def take(self, row_ids: Sequence[str], names: Set[str]) -> pa.Table:
        """Some columns of some rows, in the requested order, as zero-copy slices of row groups.

        Args:
            row_ids: at least one, each in `identities`.
            names: column names, each in `columns`.
        """
        places = [self._places[row_id] for row_id in row_ids]
        chosen = sorted(names)
        return pa.concat_tables(
            self._group(group).select(chosen).slice(start, count) for group, start, count in self._runs(places)
        )

    def value(self, row_id: str, name: str) -> Any:
        """One value, as a Python object."""
        return self.take([row_id], {name})[name][0].as_py()

    def _runs(self, places: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Runs of adjacent rows within a row group: (group, start in the group, number of rows)."""
        first = 0
        for i, place in enumerate(places):
            group = bisect_right(self._starts, place) - 1
            if i + 1 == len(places) or places[i + 1] != place + 1 or place + 1 == self._starts[group + 1]:
                yield group, places[first] - self._starts[group], i + 1 - first
                first = i + 1

    def _group(self, number: int) -> pa.Table:
        if self._last is None or self._last[0] != number:
            self._last = None  # free it before reading the next one, to hold only one in memory
            with open_parquet(self._store, self._name, self._metadata) as file:
                self._last = (number, file.read_row_group(number, sorted(self.columns)))
        return self._last[1]
