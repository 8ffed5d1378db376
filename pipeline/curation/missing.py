"""Rows whose files are missing: they stay in the dataset unchanged until the user drops them.

Such a row loses no data: its entry in the scan table and its columns in the shard are kept, and no stage runs on it.
If a new plan needs a stage to run on it, the row waits: it is moved to a unit with other waiting rows only, which stays
under the old plan, while the rest of its unit is brought up to date. It is processed once its file is back.
"""

from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.curation.prefilter import keepers
from pipeline.curation.reuse import StoredColumns
from pipeline.curation.work_units import stale_units
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import Mark, read_marks, set_marks
from pipeline.dataset.rewrite_unit import drop_rows, read_unit, split_unit
from pipeline.dataset.scan_table import drop_from_scan, known_files, latest
from pipeline.errors import DataProblem
from pipeline.ingest.manifest import file_is_there
from pipeline.planning.dag import Dag
from pipeline.planning.plan import Plan
from schemas import columns
from schemas.commits import NO_PLAN, Commit
from schemas.dataset import Layout

_STAT_THREADS = 32


def missing_rows(layout: Layout, ledger: Ledger, manifest: pa.Table) -> dict[str, str]:
    """Committed rows whose files are missing: row id -> uri.

    A row that the manifest does not list (it is from an earlier input) is missing only if no file exists at its uri. A
    row that the manifest lists and whose file was never read is not missing: it failed.
    """
    there = manifest.filter(pc.is_valid(manifest["size"]))
    rows = ledger.rows
    away = pa.array(list(rows), pa.string())
    away = away.filter(pc.invert(pc.is_in(away, there["row_id"])))
    never_seen = pa.array([row_id for row_id in away.to_pylist() if rows[row_id].track_id is None], pa.string())
    failed = pc.and_(pc.is_in(away, never_seen), pc.is_in(away, manifest["row_id"]))
    away = away.filter(pc.invert(failed))
    uris = _uris(layout, ledger, away)
    listed = {*manifest.filter(pc.is_in(manifest["row_id"], away))["row_id"].to_pylist()}
    elsewhere = [row_id for row_id in uris if row_id not in listed]
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        found = {
            row_id
            for row_id, is_there in zip(elsewhere, pool.map(lambda i: file_is_there(uris[i]), elsewhere), strict=True)
            if is_there
        }
    return {row_id: uri for row_id, uri in uris.items() if row_id not in found}


def _uris(layout: Layout, ledger: Ledger, row_ids: pa.Array) -> dict[str, str]:
    """Row id -> uri, from the scan table; from the shards and quarantine for rows the scan table does not have."""
    if not len(row_ids):
        return {}
    known = latest(known_files(layout))
    known = known.filter(pc.is_in(known["row_id"], row_ids))
    uris = dict(zip(known["row_id"].to_pylist(), known["uri"].to_pylist(), strict=True))
    lacking = {*row_ids.to_pylist()} - uris.keys()
    for commit in ledger.commits.values() if lacking else ():
        if commit.rows.keys() & lacking:
            rows = read_unit(layout, commit)
            uris |= dict(zip(rows["row_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))
    return {row_id: uris[row_id] for row_id in row_ids.to_pylist()}


def drop_missing_rows(layout: Layout, ledger: Ledger, missing: Set[str]) -> None:
    """Remove rows from the dataset because their files are missing. Unlike forgotten rows they may come back.

    Raises:
        DataProblem: no row would be left, which more likely means that a disk is not mounted.
    """
    if missing and missing >= {row_id for row_id, row in ledger.rows.items() if row.track_id is not None}:
        raise DataProblem(
            f"{layout.url}: the files of all {len(missing)} rows are missing, so --drop-missing would empty the "
            "dataset; is a disk or network share not mounted? If the files are really gone, delete the dataset"
        )
    for commit in [commit for commit in ledger.commits.values() if commit.rows.keys() & missing]:
        drop_rows(ledger, commit, missing)
    drop_from_scan(layout, missing)
    if marked := missing & read_marks(layout).keys():
        set_marks(layout, dict.fromkeys(marked))


def waiting_units(ledger: Ledger, plan: Plan) -> frozenset[int]:
    """Units under another plan than the dataset's that cannot be updated because all their rows' files are missing."""
    return frozenset(
        commit.unit
        for commit in ledger.commits.values()
        if commit.plan not in (plan.id, NO_PLAN)
        and not any(map(file_is_there, read_unit(ledger.layout, commit)["uri"].to_pylist()))
    )


@dataclass(frozen=True)
class Waiting:
    """Finds the rows that have to wait for their files, and moves them to units of their own.

    Attributes:
        layout: the dataset.
        dag: DAG of this run.
        plan: plan of this run.
        ledger: open for writing.
        marks: the users' marks.
        missing: ids of rows whose files are missing.
        retry: ids of the only rows to process, or None for all.
    """

    layout: Layout
    dag: Dag
    plan: Plan
    ledger: Ledger
    marks: Mapping[str, Mark]
    missing: Set[str]
    retry: Set[str] | None

    def split_off(self, judged: pa.Table) -> frozenset[str]:
        """Split waiting rows off stale units.

        Args:
            judged: the prefiltered scan table.

        Returns:
            Ids of the waiting rows. Each is now in a unit with waiting rows only, or in one that is not stale.
        """
        if not self.missing:
            return frozenset()
        stale = stale_units(judged, self.plan, self.ledger, self.marks, self.retry)
        affected = [commit for commit in stale if commit.rows.keys() & self.missing]
        known = judged.filter(pc.is_in(judged["row_id"], pa.array(self.missing, pa.string())))
        rows = {row["row_id"]: row for row in known.to_pylist()}
        files = {commit.unit: list(commit.files) for commit in affected}
        stored = StoredColumns(self.layout, files, self.dag)
        waiting = frozenset(
            row_id
            for commit in affected
            for row_id in commit.rows  # in the order of its files
            if row_id in self.missing and (row_id not in rows or self._is_incomplete(rows[row_id], commit, stored))
        )
        for commit in stale_units(judged, self.plan, self.ledger, self.marks, self.retry, waiting):
            if apart := commit.rows.keys() & waiting:
                split_unit(self.ledger, commit, apart)
        return waiting

    @cached_property
    def _spared(self) -> frozenset[str]:
        return keepers(self.marks)

    def _is_incomplete(self, row: Mapping[str, Any], commit: Commit, stored: StoredColumns) -> bool:
        """Whether stages would have to run on a row: it lacks a column, and no earlier gate rejects it."""
        if row["verdict"]["status"] != "kept":
            return False
        identity = {name: row[name] for name in columns.IDENTITY.names}
        valid = stored.valid_columns(commit.unit, row["row_id"], identity)
        spared = row["row_id"] in self._spared
        for node in self.dag.curation:
            name = node.column
            value = valid[name].value(row["row_id"], name) if name in valid else row.get(name)
            if value is None:
                return True
            if not spared and any(gate.rejects(value) for gate in self.dag.gates if gate.column == node.column):
                return False
        return False
