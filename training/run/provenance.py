"""Which tracks a model has learnt from: a small file in every run and in everything that is exported from one."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.files import write_durably, written_whole

_FILE = "trained_on.parquet"
_SCHEMA = pa.schema([("track_id", pa.string())])


def note_tracks(folder: Path, track_ids: Iterable[str]) -> None:
    """Add tracks to those that a run has learnt from; none is ever taken away."""
    tracks = sorted({*tracks_of(folder), *track_ids})
    with written_whole(folder / _FILE) as draft:
        pq.write_table(pa.table({"track_id": tracks}, _SCHEMA), draft)


def copy_provenance(run: Path, exported: Path) -> None:
    """Give what is exported from a run the run's list; runs of before there were lists have none."""
    folder = exported if exported.is_dir() else exported.parent
    if (run / _FILE).is_file():
        write_durably(folder / _FILE, (run / _FILE).read_bytes())


def tracks_of(folder: Path) -> set[str]:
    """Tracks that a run or an exported model has learnt from; empty where it keeps no list."""
    file = folder / _FILE
    return {*pq.read_table(file, schema=_SCHEMA)["track_id"].to_pylist()} if file.is_file() else set()


def models_below(folder: Path) -> Iterator[Path]:
    """Runs and exported models in a folder, at any depth."""
    for file in sorted(folder.rglob(_FILE)):
        yield file.parent
