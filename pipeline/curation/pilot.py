"""A pilot: a few songs through the whole plan, and by their times what a thousand hours of audio would take."""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline.curation.curate import curate
from pipeline.ingest.manifest import read_manifest
from pipeline.models.store import ModelStore
from pipeline.planning.dag import Dag
from pipeline.planning.plan import make_dag
from schemas.config import CurateConfig

_HOURS = 1000.0
_GIVEN = {"uri": "uri", "given_lyrics": "lyrics"} | {
    name: name for name in ("title", "artist", "album", "language", "license", "source")
}


class StageCost(BaseModel):
    """What one stage takes for a thousand hours of raw audio, its models loaded.

    Attributes:
        speed: seconds of audio a second of one replica, of the songs that came so far.
        replica_hours: hours of one replica, over all songs that came so far.
        core_hours: those of a stage that computes on a core, gpu_hours: those on a GPU times its share of one; both 0
            for a stage that waits for a server.
    """

    stage: str
    speed: float
    replica_hours: float
    core_hours: float
    gpu_hours: float


class Pilot(BaseModel):
    """What the pilot found; the rows and hours are the pilot's own."""

    rows: dict[str, int]
    audio_hours: float
    dataset_gb: float  # for a thousand hours of raw audio
    stages: list[StageCost]

    @property
    def core_hours(self) -> float:
        """Of all stages together."""
        return sum(stage.core_hours for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """Of all stages together."""
        return sum(stage.gpu_hours for stage in self.stages)


def run_pilot(config: CurateConfig, store: ModelStore, songs: int, *, progress: bool = True) -> Pilot:
    """Curate that many songs, drawn by chance but the same ones every time, into a folder that is removed afterwards.

    The folder lies beside the planned output, where all nodes of a cluster can reach it.

    Raises:
        DataProblem: as `pipeline.curation.curate.curate`.
    """
    manifest = read_manifest(config.input.path)
    chosen = sorted(Random(0).sample(range(manifest.num_rows), min(songs, manifest.num_rows)))
    beside = config.output.resolve().parent
    beside.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".songmill-pilot-", dir=beside) as folder:
        listing = Path(folder) / "songs.parquet"
        pq.write_table(_listing(manifest.take(chosen)), listing)
        source = config.input.model_copy(update={"path": str(listing)})
        output = Path(folder) / "dataset"
        outcome = curate(config.model_copy(update={"input": source, "output": output}), store, progress=progress)
        hours = sum(outcome.stats.hours.values())
        if not hours:
            return Pilot(rows=outcome.stats.rows, audio_hours=0.0, dataset_gb=0.0, stages=[])
        bytes_written = sum(file.stat().st_size for file in output.rglob("*.parquet"))
        dag = make_dag(config, store)
        costs = [
            _cost(time.stage, time.speed, time.seconds / 3600 / hours * _HOURS, dag) for time in outcome.stats.stages
        ]
        return Pilot(
            rows=outcome.stats.rows,
            audio_hours=hours,
            dataset_gb=bytes_written / 1e9 / hours * _HOURS,
            stages=costs,
        )


def _listing(rows: pa.Table) -> pa.Table:
    """The songs as a manifest that `read_manifest` takes."""
    return rows.select(list(_GIVEN)).rename_columns(list(_GIVEN.values()))


def _cost(stage: str, speed: float, replica_hours: float, dag: Dag) -> StageCost:
    node = next((node for node in dag.nodes if node.name == stage), None)  # the scan's, "scan: decode", use cores
    gpus, waits = (node.gpus, bool(node.concurrency)) if node else (0.0, False)
    return StageCost(
        stage=stage,
        speed=speed,
        replica_hours=replica_hours,
        core_hours=0.0 if gpus or waits else replica_hours,
        gpu_hours=replica_hours * gpus,
    )
