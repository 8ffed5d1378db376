"""Pilot run: curate a few songs with the whole plan, and extrapolate the cost of a thousand hours of audio."""

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
from pipeline.planning.fusion import gpu_share
from pipeline.planning.plan import make_dag
from schemas.config import CurateConfig
from schemas.storage.location import absolute
from schemas.storage.options import scheme

_HOURS = 1000.0
_GIVEN = {"uri": "uri", "given_lyrics": "lyrics"} | {
    name: name for name in ("title", "artist", "album", "language", "license", "source")
}


class StageCost(BaseModel):
    """Cost of one stage for a thousand hours of raw audio, without the time to load its models.

    Attributes:
        stage: name of the stage.
        speed: seconds of audio per second of one replica, over the songs that reached the stage.
        replica_hours: hours of one replica; songs that earlier stages rejected are accounted for.
        core_hours: `replica_hours` of a stage in a CPU operator, else 0.
        gpu_hours: `replica_hours` of a stage in a GPU operator times what a worker of that operator holds of a GPU, as
            it holds it whichever of its stages is running; else 0. A stage that waits for a server has neither.
    """

    stage: str
    speed: float
    replica_hours: float
    core_hours: float
    gpu_hours: float


class Pilot(BaseModel):
    """Result of a pilot run.

    Attributes:
        rows: status -> number of the pilot's own rows.
        audio_hours: hours of audio of the pilot's own songs.
        dataset_gb: size in GB of a dataset made from a thousand hours of raw audio.
        stages: cost of each stage.
    """

    rows: dict[str, int]
    audio_hours: float
    dataset_gb: float
    stages: list[StageCost]

    @property
    def core_hours(self) -> float:
        """Sum over all stages."""
        return sum(stage.core_hours for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """Sum over all stages."""
        return sum(stage.gpu_hours for stage in self.stages)


def run_pilot(config: CurateConfig, store: ModelStore, songs: int, *, progress: bool = True) -> Pilot:
    """Curate a random sample of the songs, with a fixed seed, into a temporary folder.

    The folder is created next to the planned output, where all nodes of a cluster can reach it; for an output in a
    bucket in the temporary folder of this machine, which suffices as nothing of the pilot is read by its workers.

    Args:
        config: the run's configuration.
        store: the model store.
        songs: size of the sample.
        progress: show live progress on stderr.

    Raises:
        DataProblem: as `pipeline.curation.curate.curate`.
    """
    manifest = read_manifest(config.input.path)
    chosen = sorted(Random(0).sample(range(manifest.num_rows), min(songs, manifest.num_rows)))
    beside = None if scheme(config.output) else Path(absolute(config.output)).parent
    if beside is not None:
        beside.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".songmill-pilot-", dir=beside) as folder:
        listing = Path(folder) / "songs.parquet"
        pq.write_table(_listing(manifest.take(chosen)), listing)
        source = config.input.model_copy(update={"path": str(listing)})
        output = Path(folder) / "dataset"
        outcome = curate(config.model_copy(update={"input": source, "output": str(output)}), store, progress=progress)
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
    """The songs as a manifest file's table, readable by `read_manifest`."""
    return rows.select(list(_GIVEN)).rename_columns(list(_GIVEN.values()))


def _cost(stage: str, speed: float, replica_hours: float, dag: Dag) -> StageCost:
    # Scan stages ("scan: decode") are in no operator of the curation pass; they run on CPUs.
    operator = next((nodes for nodes in dag.operators if stage in {node.name for node in nodes}), ())
    gpus, waits = gpu_share(operator), any(node.kind == "server" for node in operator)
    return StageCost(
        stage=stage,
        speed=speed,
        replica_hours=replica_hours,
        core_hours=0.0 if gpus or waits else replica_hours,
        gpu_hours=replica_hours * gpus,
    )
