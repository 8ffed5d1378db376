"""Columns that an earlier run has stored, for rows whose unit is made anew."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.planning.dag import Dag
from schemas import columns
from schemas.dataset import FOOTER_FINGERPRINTS


@dataclass
class StoredColumns:
    """Fills in, in the worker, every column of the old unit that still holds, so that its stage need not run.

    A column holds while its fingerprint, the track's bytes and the identity columns that its stage reads (given lyrics,
    say), directly or through other stages, are what they were. What the scan measures is always the scan's.

    Attributes:
        root: the dataset folder.
        files: old unit -> its files, inside the dataset.
        dag: the DAG of this run.
    """

    root: Path
    files: Mapping[int, Sequence[str]]
    dag: Dag
    _read: tuple[int, dict[str, dict[str, Any]]] = field(default=(-1, {}), repr=False)  # rows come unit by unit

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows with stored columns filled in."""
        units, ids = rows["supersedes"].to_pylist(), rows["row_id"].to_pylist()
        identities = rows.select(columns.IDENTITY.names).to_pylist()
        stored = [
            self.still_holding(unit, row_id, identity)
            for unit, row_id, identity in zip(units, ids, identities, strict=True)
        ]
        for name in {name for row in stored for name in row}:
            values = pa.array([row.get(name) for row in stored], rows.schema.field(name).type)
            rows = rows.set_column(rows.column_names.index(name), name, values)
        return rows

    def still_holding(self, unit: int | None, row_id: str, identity: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row of an old unit that still hold, given what its identity columns are now."""
        old = self._unit(unit).get(row_id) if unit is not None else None
        if old is None or old["track_id"] != identity["track_id"]:
            return {}
        changed = {name for name, value in identity.items() if old[name] != value}
        scanned = {node.column for node in self.dag.scan}
        holding = {}
        for node in self.dag.curation:
            stage = node.stage_type
            if changed & {*stage.reads, *stage.reads_if_present}:
                changed |= {node.column, *stage.working}
            elif node.column in old and node.column not in scanned:
                holding[node.column] = old[node.column]
        return holding

    def _unit(self, unit: int) -> dict[str, dict[str, Any]]:
        """Rows of an old unit by id, each with its identity and the columns whose fingerprint is unchanged."""
        if self._read[0] != unit:
            rows: dict[str, dict[str, Any]] = {}
            for name in self.files[unit]:
                for row in self._rows(self.root / name):
                    rows.setdefault(row["row_id"], {}).update(row)
            self._read = (unit, rows)
        return self._read[1]

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        schema = pq.read_schema(path)
        made_with = json.loads((schema.metadata or {}).get(FOOTER_FINGERPRINTS, b"{}"))
        same = {name for name, fingerprint in self.dag.fingerprints.items() if made_with.get(name) == fingerprint}
        wanted = [name for name in schema.names if name in same or name in columns.IDENTITY.names]
        return pq.read_table(path, columns=wanted).to_pylist()
