"""Datasets of hand-written rows, with the plan that would have made them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.planning.plan import Plan, StagePlan
from schemas import columns
from schemas.commits import Commit, RowState, StageTime
from schemas.config import DedupConfig
from schemas.dataset import Layout
from schemas.files import file_digest

SCHEMA = pa.schema(
    [
        *columns.IDENTITY,
        ("audio", columns.AUDIO),
        ("quality", columns.QUALITY),
        ("vocals", columns.VOCALS),
        ("transcript", columns.TRANSCRIPT),
        ("rhythm", columns.RHYTHM),
        ("tags", columns.TAGS),
        ("caption", columns.CAPTION),
        ("flags", columns.FLAGS),
        ("verdict", columns.VERDICT),
    ]
)
_STAGES = {"audio": "decode"}


def row(number: int, status: str = "kept", stage: str | None = None, reason: str | None = None, **more: Any) -> dict:
    """A song of an hour, instrumental and without flags; `more` changes columns."""
    return {
        "row_id": f"{number:032x}",
        "track_id": f"track {number}",
        "uri": f"songs/{number}.flac",
        "title": f"Song {number}",
        "license": "CC-BY-4.0",
        "source": "own",
        "audio": {"duration_s": 3600.0, "codec": "flac", "model": "pyav"},
        "quality": {"loudness_lufs": -14.0, "bandwidth_hz": 16_000.0, "model": "songmill.quality@r1"},
        "vocals": {"has_vocals": False, "active_ratio": 0.0, "model": "spleeter"},
        "rhythm": {"bpm": 120.0, "model": "essentia"},
        "tags": {"names": ["rock"], "scores": [0.9], "model": "musicnn"},
        "caption": {"simplified": "rock", "source": "measured", "model": "songmill.caption@r1"},
        "flags": [],
        "verdict": {"status": status, "stage": stage, "reason": reason, "message": None, "attempts": 1},
        **more,
    }


def write_rows(
    root: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    gates: Mapping[str, Mapping[str, float]] | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> Layout:
    """A committed dataset of one unit: kept rows in a shard, all others in the quarantine."""
    files = {}
    for kept, name in ((True, "shards/train-000000.parquet"), (False, "quarantine/part-000000.parquet")):
        if chosen := [row for row in rows if (row["verdict"]["status"] == "kept") == kept]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(chosen, SCHEMA), root / name)
            files[name] = file_digest(root / name)
    plan = _plan(gates or {}, fingerprints or {})
    commit = Commit(
        unit=0,
        plan=plan.id,
        files=files,
        rows={r["row_id"]: RowState(status=r["verdict"]["status"], track_id=r["track_id"], basis="") for r in rows},
        timings={"rhythm": StageTime(rows=len(rows), seconds=2.0, audio_s=3600.0 * len(rows))},
    )
    (root / "_songmill/commits").mkdir(parents=True, exist_ok=True)
    (root / "_songmill/plan.json").write_text(plan.model_dump_json())
    (root / "_songmill/commits/000000.json").write_text(commit.model_dump_json())
    return Layout.at(root)


def _plan(gates: Mapping[str, Mapping[str, float]], fingerprints: Mapping[str, str]) -> Plan:
    names = [name for name in SCHEMA.names if name not in (*columns.IDENTITY.names, "flags", "verdict")]
    stages = {
        name: StagePlan(
            name=_STAGES.get(name, name),
            engine="by-hand",
            params={},
            reads=[],
            working=[],
            models={"spleeter-2stems": "ce091059e50b39b6"} if name == "vocals" else {},
            resources={},
            fingerprint=fingerprints.get(name, f"{name:0<32.32}"),
        )
        for name in names
    }
    given = {column: dict(bounds) for column, bounds in gates.items()}
    return Plan(profile="small", columns=stages, gates=given, dedup=DedupConfig())
