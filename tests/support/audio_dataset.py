"""Datasets of real files, with what training on audio reads of them."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from pipeline.ingest.identity import track_id
from pipeline.models.store import ModelStore
from pipeline.planning.plan import make_dag, make_plan
from schemas import columns
from schemas.commits import Commit, RowState
from schemas.config import CurateConfig
from schemas.files import file_digest


def write_audio_dataset(root: Path, files: Sequence[Path]) -> Path:
    """A dataset whose kept rows are these files."""
    rows = [
        {
            "row_id": f"row-{number}",
            "track_id": track_id(str(file)),
            "uri": str(file),
            "license": "MIT",
            "artist": file.stem,
            "audio": {"duration_s": soundfile.info(file).duration},
            "verdict": {"status": "kept", "attempts": 1},
        }
        for number, file in enumerate(files)
    ]
    fields = [("audio", columns.AUDIO), ("verdict", columns.VERDICT)]
    name = "shards/train-000000.parquet"
    (root / "shards").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([*columns.IDENTITY, *fields])), root / name)
    config = CurateConfig.model_validate({"input": {"path": "x"}, "output": root, "stages": {"decode": {}}})
    commits = root / "_songmill/commits"
    commits.mkdir(parents=True)
    (root / "_songmill/plan.json").write_text(make_plan(config, make_dag(config, ModelStore())).model_dump_json())
    digests = {name: file_digest(root / name)}
    states = {row["row_id"]: RowState(status="kept", track_id=row["track_id"], basis="toy") for row in rows}
    commit = Commit(unit=0, plan="toy", files=digests, rows=states, timings={})
    (commits / "000000.json").write_text(commit.model_dump_json())
    return root
