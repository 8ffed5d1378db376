"""Which tracks a model was trained on: a small file in every run and in every model exported from one."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.files import write_durably, written_whole

_FILE = "trained_on.parquet"
_SCHEMA = pa.schema([("track_id", pa.string())])


def note_tracks(folder: Path, track_ids: Iterable[str]) -> None:
    """Add tracks to the list of those that a run was trained on; none is ever removed."""
    tracks = sorted({*tracks_of(folder), *track_ids})
    with written_whole(folder / _FILE) as draft:
        pq.write_table(pa.table({"track_id": tracks}, _SCHEMA), draft)


def copy_provenance(run: Path, exported: Path) -> None:
    """Copy a run's list beside what was exported from it; runs of early versions have no list."""
    folder = exported if exported.is_dir() else exported.parent
    if (run / _FILE).is_file():
        write_durably(folder / _FILE, (run / _FILE).read_bytes())


def tracks_of(folder: Path) -> set[str]:
    """Track ids that a run or exported model was trained on; empty if it has no list."""
    file = folder / _FILE
    return {*pq.read_table(file, schema=_SCHEMA)["track_id"].to_pylist()} if file.is_file() else set()


def models_below(folder: Path) -> Iterator[Path]:
    """Folders of runs and exported models below a folder, at any depth."""
    for file in sorted(folder.rglob(_FILE)):
        yield file.parent
