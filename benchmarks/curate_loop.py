"""The baseline: the same stage objects in one process, one after the other, song by song, without Ray.

    python -m benchmarks.curate_loop SONGS --threads 1

It decodes once, whereas `songmill curate` decodes for the scan and again for the models: nothing is slowed down on
purpose. Prints JSON: seconds of each stage and in total, measured after loading the models and one warm-up song.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import pyarrow as pa
import typer

from pipeline.ingest.identity import identify
from pipeline.ingest.manifest import read_manifest
from pipeline.models.store import ModelStore
from pipeline.planning.config import build_config
from pipeline.planning.dag import Dag
from pipeline.planning.plan import make_dag
from schemas import columns
from stages.base import Stage, TrackError


@dataclass
class Loop:
    """Times of the loop.

    Attributes:
        wall_s: seconds for all songs, warm.
        audio_s: length of all songs.
        setup_s: stage -> seconds to load its models.
        stage_s: stage -> seconds spent in it.
        stage_audio_s: stage -> length of the songs that reached it.
    """

    wall_s: float = 0.0
    audio_s: float = 0.0
    setup_s: dict[str, float] = field(default_factory=dict)
    stage_s: Counter[str] = field(default_factory=Counter)
    stage_audio_s: Counter[str] = field(default_factory=Counter)


def main(
    songs: Annotated[Path, typer.Argument(help="Folder of songs.")],
    threads: Annotated[int, typer.Option(help="Of every library that has any.")] = 1,
) -> None:
    """Run the loop and print its times."""
    config = build_config(input=str(songs), output=songs / "unused")
    with threads_everywhere(threads):
        loop, _ = run(make_dag(config, ModelStore()), read_manifest(config.input.path))
    print(json.dumps(vars(loop)))


def run(dag: Dag, manifest: pa.Table) -> tuple[Loop, list[dict[str, Any]]]:
    """Run every song through all stages until a threshold rejects it; return times and the columns of every row."""
    loop = Loop()
    stages = []
    for node in dag.nodes:
        started = time.perf_counter()
        stage = node.build()
        stage.setup(node.weights)
        loop.setup_s[node.name] = time.perf_counter() - started
        stages.append(stage)
    for stage in stages:
        read = {column for other in stages for column in (*other.reads, *other.reads_if_present)}
        stage.wanted = frozenset(stage.working) & read
    _song(dag, stages, manifest.slice(0, 1), Loop())  # caches fill, kernels are compiled
    started = time.perf_counter()
    rows = [_song(dag, stages, manifest.slice(i, 1), loop) for i in range(manifest.num_rows)]
    loop.wall_s = time.perf_counter() - started
    return loop, rows


def _song(dag: Dag, stages: list[Stage], row: pa.Table, loop: Loop) -> dict[str, Any]:
    gates = defaultdict(list)
    for gate in dag.gates:
        gates[gate.column].append(gate)
    kept = {"status": "kept", "stage": None, "reason": None, "message": None, "attempts": 1}
    row = identify(row.append_column("verdict", pa.array([kept], columns.VERDICT)))
    made: dict[str, Any] = {}
    took: dict[str, float] = {}
    for stage in stages:
        started = time.perf_counter()
        try:
            values = stage.run(row)
        except TrackError:
            break
        took[stage.name] = time.perf_counter() - started
        types = {stage.column: stage.type, **{name: stage.working[name] for name in stage.wanted}}
        for name, type in types.items():
            row = row.append_column(name, pa.array(values[name], type))
        made[stage.column] = row[stage.column][0].as_py()
        if any(gate.rejects(made[stage.column]) for gate in gates[stage.column]):
            break
    audio_s = (made.get("audio") or {}).get("duration_s") or 0.0
    loop.audio_s += audio_s
    for name, seconds in took.items():
        loop.stage_s[name] += seconds  # type: ignore[assignment]
        loop.stage_audio_s[name] += audio_s
    return {"uri": row["uri"][0].as_py(), **made}


@contextmanager
def threads_everywhere(count: int) -> Iterator[None]:
    """Force the number of threads in torch, BLAS and OpenMP, ONNX Runtime and CTranslate2."""
    import faster_whisper
    import onnxruntime
    import torch
    from threadpoolctl import threadpool_limits

    session, whisper = onnxruntime.InferenceSession.__init__, faster_whisper.WhisperModel.__init__

    def open_session(self: Any, *args: Any, sess_options: Any = None, **kwargs: Any) -> None:
        sess_options = sess_options or onnxruntime.SessionOptions()
        sess_options.intra_op_num_threads = count
        session(self, *args, sess_options=sess_options, **kwargs)

    def load_whisper(self: Any, *args: Any, **kwargs: Any) -> None:
        whisper(self, *args, **{**kwargs, "cpu_threads": count})

    torch.set_num_threads(count)
    with (
        threadpool_limits(count),
        patch.object(onnxruntime.InferenceSession, "__init__", open_session),
        patch.object(faster_whisper.WhisperModel, "__init__", load_whisper),
    ):
        yield


if __name__ == "__main__":
    typer.run(main)
