"""Rows whose files are away: they stay as they are, until somebody says that they may go.

Nothing of such a row is lost: the scan keeps what it knows of it, its columns stay in its shard, and no stage runs on
it. Where another plan asks for that, the row waits, in a unit with none but its kind and under the plan that made it,
while the rest of its old unit is brought up to date. It follows when its file is back.
"""

from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
    """Committed rows whose files are away, with their uris.

    A row of an earlier input, which the manifest does not list, counts only if there is no file at its uri. A row that
    the manifest lists and whose file nobody has ever read is not missing: it failed.
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
    """From the scan table, which knows them all unless somebody has deleted it."""
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
    """Take rows out of the dataset because their files are away. Unlike forgotten ones they may come back.

    Raises:
        DataProblem: nothing would be left, which rather means that a disk is not mounted.
    """
    if missing and missing >= {row_id for row_id, row in ledger.rows.items() if row.track_id is not None}:
        raise DataProblem(
            f"{layout.root}: no file of its {len(missing)} rows can be found, so --drop-missing would leave nothing of "
            "it; is a disk or a share not mounted? If they are really gone, delete the dataset's folder"
        )
    for commit in [commit for commit in ledger.commits.values() if commit.rows.keys() & missing]:
        drop_rows(ledger, commit, missing)
    drop_from_scan(layout, missing)
    if marked := missing & read_marks(layout).keys():
        set_marks(layout, dict.fromkeys(marked))


def waiting_units(ledger: Ledger, plan: Plan) -> frozenset[int]:
    """Units under another plan than the dataset's all of whose rows have no file: nothing can bring them up to date."""
    return frozenset(
        commit.unit
        for commit in ledger.commits.values()
        if commit.plan not in (plan.id, NO_PLAN)
        and not any(map(file_is_there, read_unit(ledger.layout, commit)["uri"].to_pylist()))
    )


@dataclass(frozen=True)
class Waiting:
    """Finds the rows that have to wait for their files.

    Attributes:
        layout: the dataset.
        dag: of this run.
        plan: of this run.
        ledger: open for writing.
        marks: what people said.
        missing: rows whose files are away.
        retry: rows to work on again, if it is only these.
    """

    layout: Layout
    dag: Dag
    plan: Plan
    ledger: Ledger
    marks: Mapping[str, Mark]
    missing: Set[str]
    retry: Set[str] | None

    def set_apart(self, judged: pa.Table) -> frozenset[str]:
        """The rows that wait; each stands in a unit with others of its kind only, or in one that is not stale."""
        if not self.missing:
            return frozenset()
        stale = stale_units(judged, self.plan, self.ledger, self.marks, self.retry)
        affected = [commit for commit in stale if commit.rows.keys() & self.missing]
        known = judged.filter(pc.is_in(judged["row_id"], pa.array(self.missing, pa.string())))
        rows = {row["row_id"]: row for row in known.to_pylist()}
        files = {commit.unit: list(commit.files) for commit in affected}
        stored = StoredColumns(self.layout.root, files, self.dag)
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

    def _is_incomplete(self, row: Mapping[str, Any], commit: Commit, stored: StoredColumns) -> bool:
        """Whether stages would have to run on a row: it is kept, by all that it has, and lacks a column."""
        if row["verdict"]["status"] != "kept":
            return False
        identity = {name: row[name] for name in columns.IDENTITY.names}
        holding = stored.still_holding(commit.unit, row["row_id"], identity)
        spared = row["row_id"] in keepers(self.marks)
        for node in self.dag.curation:
            name = node.column
            value = holding[name].value(row["row_id"], name) if name in holding else row.get(name)
            if value is None:
                return True
            if not spared and any(gate.rejects(value) for gate in self.dag.gates if gate.column == node.column):
                return False
        return False
