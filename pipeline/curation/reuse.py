"""Reuse columns that an earlier run has stored, for rows whose unit is recomputed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.curation.stored_file import StoredFile
from pipeline.planning.dag import Dag
from schemas import columns
from schemas.dataset import Layout


@dataclass
class StoredColumns:
    """Fills in, in the worker, every column of the old unit that is still valid, so that its stage need not run.

    A column is valid if its fingerprint, the track's bytes and the identity columns that its stage depends on, directly
    or through other stages (given lyrics, for example), are unchanged. Scan columns always come from the scan table.

    Only identity columns become Python objects; all others stay in Arrow from file to table.

    Attributes:
        layout: the dataset.
        files: old unit -> names of its files.
        dag: the DAG of this run.
    """

    layout: Layout
    files: Mapping[int, Sequence[str]]
    dag: Dag
    _read: tuple[int, list[StoredFile]] = field(default=(-1, []), repr=False)  # the last unit's files
    _reusable: dict[frozenset[str], frozenset[str]] = field(default_factory=dict, repr=False)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows with stored columns filled in."""
        units, ids = rows["supersedes"].to_pylist(), rows["row_id"].to_pylist()
        identities = rows.select(columns.IDENTITY.names).to_pylist()
        pieces: defaultdict[str, list[tuple[list[int], pa.ChunkedArray]]] = defaultdict(list)
        for unit in dict.fromkeys(unit for unit in units if unit is not None):
            for (file, names), places in self._valid_by_file(unit, units, identities).items():
                taken = file.take([ids[place] for place in places], names)
                for name in names:
                    pieces[name].append((places, taken[name]))
        for name, found in pieces.items():
            values = _joined(found, rows.num_rows, rows.schema.field(name).type)
            rows = rows.set_column(rows.column_names.index(name), name, values)
        return rows

    def valid_columns(self, unit: int, row_id: str, identity: Mapping[str, Any]) -> dict[str, StoredFile]:
        """The columns of a row of an old unit that are still valid, each with the file that has it.

        Args:
            unit: the old unit.
            row_id: the row's id.
            identity: current values of its identity columns.
        """
        files = [file for file in self._unit(unit) if row_id in file.identities]
        old: dict[str, Any] = {}
        for file in files:
            old |= file.identities[row_id]
        if not old or old["track_id"] != identity["track_id"]:
            return {}
        reusable = self._unaffected_by(frozenset(name for name, value in identity.items() if old[name] != value))
        return {name: file for file in files for name in file.columns & reusable}

    def _valid_by_file(
        self, unit: int, units: Sequence[int | None], identities: Sequence[Mapping[str, Any]]
    ) -> dict[tuple[StoredFile, frozenset[str]], list[int]]:
        """File of a unit and columns to take from it -> positions in the batch of the rows they are valid for."""
        valid: defaultdict[tuple[StoredFile, frozenset[str]], list[int]] = defaultdict(list)
        for place, identity in enumerate(identities):
            if units[place] == unit:
                names: defaultdict[StoredFile, set[str]] = defaultdict(set)
                for name, file in self.valid_columns(unit, identity["row_id"], identity).items():
                    names[file].add(name)
                for file, of_file in names.items():
                    valid[file, frozenset(of_file)].append(place)
        return valid

    def _unaffected_by(self, changed: frozenset[str]) -> frozenset[str]:
        """Columns of the curation pass, without scan columns, that do not depend on these identity columns."""
        if changed not in self._reusable:
            affected = set(changed)
            for node in self.dag.curation:
                stage = node.stage_type
                if affected & {*stage.reads, *stage.reads_if_present}:
                    affected |= {node.column, *stage.working}
            scanned = {node.column for node in self.dag.scan}
            self._reusable[changed] = frozenset(node.column for node in self.dag.curation) - affected - scanned
        return self._reusable[changed]

    def _unit(self, unit: int) -> list[StoredFile]:
        if self._read[0] != unit:
            store, made_with = self.layout.store, self.dag.fingerprints
            self._read = (unit, [StoredFile(store, name, made_with) for name in self.files[unit]])
        return self._read[1]


def _joined(pieces: Sequence[tuple[list[int], pa.ChunkedArray]], count: int, type: pa.DataType) -> pa.ChunkedArray:
    """A column of `count` rows assembled from pieces, each with the positions of its values; null elsewhere."""
    values = pa.chunked_array([chunk for _, piece in pieces for chunk in piece.cast(type).chunks], type)
    filled = [place for places, _ in pieces for place in places]
    if filled == list(range(count)):
        return values
    source: list[int | None] = [None] * count
    for i, place in enumerate(filled):
        source[place] = i
    return values.take(pa.array(source, pa.int64()))
