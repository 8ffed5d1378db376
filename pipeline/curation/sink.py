"""Sinks: collect the rows of a unit after the last operator, and write the unit's files under temporary names.

Sinks run in the driver, which then commits the files (see `pipeline.dataset.ledger`). Units that are
incomplete when a pass fails are not committed, and their rows are processed again.
"""

import json
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.curation.flags import with_flags
from pipeline.dataset.shard_files import FEATURE_ROW_GROUP, write_rows, write_scan_part
from pipeline.dataset.sketches import with_bands
from pipeline.dataset.stage_times import row_times
from pipeline.ingest.identity import basis
from schemas import columns
from schemas.commits import Commit, RowState, StageTime
from schemas.dataset import (
    FEATURES,
    FOOTER_FINGERPRINTS,
    FOOTER_PLAN,
    FOOTER_SCHEMA_VERSION,
    FOOTER_SHARD_DIGEST,
    SCHEMA_VERSION,
    Layout,
)
from schemas.files import file_digest

# Bookkeeping columns of rows in a pass: the row's unit, its position in it, the unit's row count, the unit it replaces.
UNIT = pa.schema([("unit", pa.int64()), ("place", pa.int64()), ("unit_rows", pa.int64()), ("supersedes", pa.int64())])


@dataclass(frozen=True)
class SinkSpec:
    """What a sink needs to know about the run.

    Attributes:
        layout: the dataset.
        plan: id of the plan.
        fingerprints: column -> fingerprint of the stage that writes it.
        marks: row id -> `keep` or `drop`.
    """

    layout: Layout
    plan: str
    fingerprints: Mapping[str, str]
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def footer(self) -> dict[bytes, bytes]:
        """Parquet footer metadata of every file that the sink writes."""
        return {
            FOOTER_SCHEMA_VERSION: str(SCHEMA_VERSION).encode(),
            FOOTER_PLAN: self.plan.encode(),
            FOOTER_FINGERPRINTS: json.dumps(dict(self.fingerprints), sort_keys=True).encode(),
        }


_Written = TypeVar("_Written")


class Gatherer(ABC, Generic[_Written]):
    """Collects rows until a unit is complete; subclasses write the unit and describe what they wrote."""

    def __init__(self, spec: SinkSpec) -> None:
        self.spec = spec
        self.layout = spec.layout
        self._open: defaultdict[int, dict[int, tuple[pa.Table, int]]] = defaultdict(dict)  # unit -> place -> block, row

    def __call__(self, block: pa.Table) -> list[_Written]:
        """Add rows; returns the result of `write` for each unit that they complete."""
        finished = []
        places = zip(*(block[name].to_pylist() for name in ("unit", "place", "unit_rows")), strict=True)
        for i, (unit, place, wanted) in enumerate(places):
            self._open[unit][place] = (block, i)
            if len(self._open[unit]) == wanted:
                finished.append(self.write(unit, _in_order(self._open.pop(unit))))
        return finished

    @abstractmethod
    def write(self, unit: int, rows: pa.Table) -> _Written:
        """Write a complete unit under temporary names."""

    def temporary(self, name: str) -> Path:
        """A path that no other process writes to."""
        return self.layout.store.scratch / f"{name}-{uuid.uuid4().hex}.parquet"

    def write_features(self, unit: int, rows: pa.Table, shard_digest: str) -> dict[str, Path]:
        """Write every feature that the rows have.

        Returns:
            Name -> current path of the file.
        """
        footer = {**self.spec.footer, FOOTER_SHARD_DIGEST: shard_digest.encode()}
        files = {}
        for name in FEATURES:
            if name in rows.column_names:
                path = self.temporary(name)
                write_rows(rows.select(["row_id", name]), path, footer, FEATURE_ROW_GROUP)
                files[self.layout.feature_file(name, unit)] = path
        return files


@dataclass(frozen=True)
class ScanPart:
    """A part of the scan table: its number and the current path of its file."""

    number: int
    path: Path


class ScanSink(Gatherer[ScanPart]):
    """Writes parts of the scan table; these need no commit record."""

    def write(self, unit: int, rows: pa.Table) -> ScanPart:
        """Write one part, with the LSH bands of its sketches, so that later runs need not compute them."""
        path = self.temporary("scan")
        write_scan_part(with_bands(rows.drop_columns(UNIT.names)), path, self.spec.footer)
        return ScanPart(unit, path)


@dataclass(frozen=True)
class WrittenUnit:
    """A unit that is ready to be committed.

    Attributes:
        commit: its record.
        temporary: name -> current path of the file.
        measured: ids of the rows that a stage of this pass ran on.
    """

    commit: Commit
    temporary: dict[str, Path]
    measured: list[str]


class ShardSink(Gatherer[WrittenUnit]):
    """Writes a unit: its shard, feature files and quarantine file."""

    def write(self, unit: int, rows: pa.Table) -> WrittenUnit:
        """Write one unit. Without kept rows it has no shard, without rejected rows no quarantine file."""
        files: dict[str, Path] = {}
        supersedes = rows["supersedes"][0].as_py()
        facts = with_flags(rows.drop_columns([*UNIT.names, "timing"]))
        kept = pa.array([verdict["status"] == "kept" for verdict in rows["verdict"].to_pylist()])
        if (shard := facts.filter(kept)).num_rows:
            files |= self._write_shard(unit, shard)
        if (rejected := facts.filter(pc.invert(kept))).num_rows:
            path = self.temporary("quarantine")
            write_rows(_without_features(rejected), path, self.spec.footer)
            files[self.layout.quarantine_file(unit)] = path
        commit = Commit(
            unit=unit,
            plan=self.spec.plan,
            files={name: file_digest(path) for name, path in files.items()},
            rows=_row_states(facts, self.spec.marks),
            timings=row_times(rows),
            supersedes=supersedes,
        )
        return WrittenUnit(commit, files, _measured(rows))

    def _write_shard(self, unit: int, rows: pa.Table) -> dict[str, Path]:
        shard = self.temporary("train")
        write_rows(_without_features(rows), shard, self.spec.footer)
        return {
            self.layout.shard_file(unit): shard,
            **self.write_features(unit, rows, file_digest(shard)),
        }


@dataclass(frozen=True)
class FeatureSpec(SinkSpec):
    """`SinkSpec` of a `FeatureSink`.

    Attributes:
        shards: unit -> sha256 of its shard.
    """

    shards: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WrittenFeatures:
    """Features of a unit that are ready to be committed.

    Attributes:
        unit: number of the unit.
        files: name -> sha256.
        temporary: name -> current path of the file.
        timings: stage -> its wall time on these rows.
        failures: stage, reason and message of each row that failed.
    """

    unit: int
    files: dict[str, str]
    temporary: dict[str, Path]
    timings: dict[str, StageTime]
    failures: list[tuple[str, str, str]]


class FeatureSink(Gatherer[WrittenFeatures]):
    """Writes feature files beside shards that are already committed."""

    spec: FeatureSpec

    def write(self, unit: int, rows: pa.Table) -> WrittenFeatures:
        """Write the features of one unit."""
        files = self.write_features(unit, rows, self.spec.shards[unit])
        verdicts = rows["verdict"].to_pylist()
        return WrittenFeatures(
            unit=unit,
            files={name: file_digest(path) for name, path in files.items()},
            temporary=files,
            timings=row_times(rows),
            failures=[(v["stage"], v["reason"], v["message"]) for v in verdicts if v["status"] == "failed"],
        )


def _in_order(held: Mapping[int, tuple[pa.Table, int]]) -> pa.Table:
    """The rows of a unit in order; adjacent rows of a block form one slice, since many small slices write slowly."""
    pieces: list[tuple[pa.Table, int, int]] = []
    for _, (block, i) in sorted(held.items(), key=lambda item: item[0]):
        if pieces and pieces[-1][0] is block and sum(pieces[-1][1:]) == i:
            pieces[-1] = (block, pieces[-1][1], pieces[-1][2] + 1)
        else:
            pieces.append((block, i, 1))
    return pa.concat_tables(block.slice(start, count) for block, start, count in pieces)


def _without_features(rows: pa.Table) -> pa.Table:
    return rows.drop_columns([name for name in FEATURES if name in rows.column_names])


def _measured(rows: pa.Table) -> list[str]:
    """Ids of the rows that a stage of this pass ran on."""
    steps = pc.fill_null(pc.list_value_length(rows["timing"]), 0)
    return rows["row_id"].filter(pc.greater(steps, 0)).to_pylist()  # type: ignore[no-any-return]


def _row_states(rows: pa.Table, marks: Mapping[str, str]) -> dict[str, RowState]:
    known = rows.select([*columns.IDENTITY.names, "dedup", "verdict"]).to_pylist()
    return {
        row["row_id"]: RowState(
            status=row["verdict"]["status"],
            track_id=row["track_id"],
            basis=basis(row),
            mark=marks.get(row["row_id"]),
        )
        for row in known
    }
