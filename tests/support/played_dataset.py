"""A dataset whose runs are played: the scan table is written down by hand, the worker only fills in stored columns."""

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.curation.prefilter import judge_scan
from pipeline.curation.reuse import StoredColumns
from pipeline.curation.sink import ShardSink, SinkSpec
from pipeline.curation.work_units import units_to_do
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import read_marks
from pipeline.dataset.scan_table import scan_schema
from pipeline.dataset.sketches import with_bands
from pipeline.dataset.tombstones import forgotten_tracks, read_tombstones
from pipeline.planning.config import build_config
from pipeline.planning.dag import build_dag
from pipeline.planning.plan import make_plan
from schemas.dataset import Layout
from tests.pipeline.curation.test_duplicates import fingerprints_of

STAGES = ("decode", "quality", "fingerprint", "key")
KEY = {"tonic": "C", "mode": "major", "strength": 0.9, "second_tonic": "C", "second_mode": "major", "model": "by hand"}


def scanned(name: str, track: str, *, works: bool = True, loudness: float = -14.0, **identity: Any) -> dict[str, Any]:
    """A row of the scan table; songs with different tracks do not resemble each other."""
    status = {"status": "kept", "stage": None, "reason": None, "message": None, "attempts": 1}
    if not works:
        status |= {"status": "failed", "stage": "decode", "reason": "TruncatedAudio", "message": "cut"}
    first = int.from_bytes(track.encode()) % 1_000_000 * 1000
    return {
        "row_id": name,
        "track_id": track,
        "uri": f"songs/{name}.flac",
        **identity,
        "audio": {"duration_s": 30.0, "sample_rate_hz": 44_100, "channels": 2, "codec": "flac"} if works else None,
        "quality": {"loudness_lufs": loudness, "bandwidth_hz": 20_000.0, "clipped_ratio": 0.0} if works else None,
        "fingerprint": {"hashes": list(range(first, first + 100))} if works else None,
        "verdict": status,
        "timing": [],
    }


class PlayedDataset:
    """A dataset whose models are played: every kept row without a key gets one, and is counted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout.at(root)
        with self.layout.store.writing():
            self.ledger = Ledger(self.layout).open()
        self.measured: list[str] = []

    def todo(self, *rows: dict[str, Any], overrides: tuple[str, ...] = ()) -> pa.Table:
        """What a run would have to do."""
        config = build_config(only=STAGES, overrides=overrides, input="songs", output=self.root)
        dag = build_dag(config, {}, {})
        plan = make_plan(config, dag)
        scan = with_bands(pa.Table.from_pylist(list(rows), scan_schema(dag))).drop_columns(["timing"])
        marks, forgotten = read_marks(self.layout), forgotten_tracks(read_tombstones(self.layout))
        judged = judge_scan(scan, dag, plan, self.ledger, partial(fingerprints_of, scan), marks, forgotten)
        return units_to_do(judged, dag, plan, self.ledger, config.resources, marks)

    def run(self, *rows: dict[str, Any], overrides: tuple[str, ...] = ()) -> "PlayedDataset":
        config = build_config(only=STAGES, overrides=overrides, input="songs", output=self.root)
        dag = build_dag(config, {}, {})
        plan = make_plan(config, dag)
        (self.root / "_songmill/plan.json").write_text(plan.model_dump_json())
        marks = read_marks(self.layout)
        rows_to_do = self.todo(*rows, overrides=overrides)
        files = {commit.unit: list(commit.files) for commit in self.ledger.commits.values()}
        worked = StoredColumns(self.layout, files, dag)(rows_to_do) if rows_to_do.num_rows else rows_to_do
        said = {row_id: mark.mark for row_id, mark in marks.items()}
        sink = ShardSink(SinkSpec(self.layout, plan.id, dag.fingerprints, said))
        with self.layout.store.writing():
            for written in sink(self._measure(worked)):
                self.ledger.add(written.commit, written.temporary)
        assert not self.todo(*rows, overrides=overrides).num_rows, "it does not come to rest"
        return self

    def _measure(self, rows: pa.Table) -> pa.Table:
        keys = rows["key"].to_pylist()
        for i, verdict in enumerate(rows["verdict"].to_pylist()):
            if verdict["status"] == "kept" and keys[i] is None:
                keys[i] = KEY
                self.measured.append(rows["row_id"][i].as_py())
        return rows.set_column(rows.column_names.index("key"), "key", pa.array(keys, rows.schema.field("key").type))

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        paths = [*(self.root / "shards").glob("*"), *(self.root / "quarantine").glob("*")]
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        assert len(rows) == len({row["row_id"] for row in rows}) == len(self.ledger.rows)
        return {row["row_id"]: row for row in rows}

    @property
    def verdicts(self) -> dict[str, str]:
        return {name: row["verdict"]["reason"] or row["verdict"]["status"] for name, row in sorted(self.rows.items())}
