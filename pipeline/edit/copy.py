"""`songmill copy`: a dataset from one place to another, a folder or a bucket each, unit by unit.

Every file is compared with the digest of its commit record as it is read. The plan comes last: until then the copy is
no dataset to any command, and the same command goes on with it.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pipeline.dataset.stored_bytes import chunks
from pipeline.dataset.writing import describe_dataset, exclusive_lock
from pipeline.errors import DataProblem
from pipeline.planning.plan import Plan
from schemas.commits import read_records
from schemas.dataset import Layout
from schemas.storage.store import Store


@dataclass(frozen=True)
class Copied:
    """What a copy has moved.

    Attributes:
        units: that were copied now.
        there: units that the target had already.
        removed: units that the target had and the source has not.
        size: bytes that were copied now.
    """

    units: int
    there: int
    removed: int
    size: int


def copy_dataset(
    source: Layout, target: Layout, *, mirror: bool = False, progress: Callable[[int, int], None] = lambda *_: None
) -> Copied:
    """Copy a dataset.

    Args:
        source: the dataset. It should not be written meanwhile.
        target: an empty place, or one with an earlier copy.
        mirror: remove units of the target that the source does not have any more.
        progress: called with the number of units that are done, and of all.

    Raises:
        NoDataset: the source is none.
        DatasetLocked: another process is writing the target.
        DataProblem: the target has other units, or a file of the source is damaged.
    """
    source.require()
    with exclusive_lock(target):
        records = {record.unit: source.store.get(source.commit_file(record.unit)) for record in read_records(source)}
        others = _others(target, records, mirror)
        files = {record.unit: record.files for record in read_records(source)}
        moved = size = 0
        for done, (unit, record) in enumerate(records.items()):
            progress(done, len(records))
            if _has(target.store, target.commit_file(unit), record):
                continue
            fetched = {name: _fetched(source, name, digest, target) for name, digest in files[unit].items()}
            size += sum(path.stat().st_size for path in fetched.values())
            target.store.publish({**fetched, target.commit_file(unit): record})
            moved += 1
        for unit, named in others.items():
            target.store.publish({}, [*named - _named(files), target.commit_file(unit)])
        _copy_the_rest(source, target)
        progress(len(records), len(records))
        describe_dataset(target, Plan.model_validate_json(target.store.get(target.plan)))
    return Copied(moved, len(records) - moved, len(others), size)


def _others(target: Layout, records: Mapping[int, bytes], mirror: bool) -> dict[int, set[str]]:
    """Unit -> names of its files, of units of the target that the source does not have.

    Raises:
        DataProblem: there are some, without `mirror`.
    """
    others = {
        record.unit: {*record.files}
        for record in read_records(target)
        if not _has(target.store, target.commit_file(record.unit), records.get(record.unit))
    }
    if others and not mirror:
        raise DataProblem(
            f"{target.url} has {len(others)} units that the source does not have, such as {min(others)}: copy to "
            "another place, or add --mirror to remove them"
        )
    return {unit: names for unit, names in others.items() if unit not in records}


def _has(store: Store, name: str, content: bytes | None) -> bool:
    return content is not None and store.exists(name) and store.get(name) == content


def _named(files: Mapping[int, Mapping[str, str]]) -> set[str]:
    return {name for of_unit in files.values() for name in of_unit}


def _fetched(source: Layout, name: str, digest: str, target: Layout) -> Path:
    """A file of the source beside those that the target is to publish.

    Raises:
        DataProblem: it is not what was committed.
    """
    path = target.store.scratch / f"copied-{uuid4().hex}"
    found = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks(source.store, name):
            found.update(chunk)
            file.write(chunk)
    if found.hexdigest() != digest:
        raise DataProblem(f"{source.url}/{name}: content differs from what was committed; nothing of it was copied")
    return path


def _copy_the_rest(source: Layout, target: Layout) -> None:
    """The scan table, marks, tombstones, the configuration, and last the plan."""
    parts = source.store.names(source.scan)
    gone = {*target.store.names(target.scan)} - {*parts}
    for name in parts:
        if not target.store.exists(name) or target.store.size(name) != source.store.size(name):
            path = target.store.scratch / f"copied-{uuid4().hex}"
            path.write_bytes(source.store.get(name))
            target.store.publish({name: path})
    if source.store.exists(source.marks):
        target.store.put(target.marks, source.store.get(source.marks))
    names = [name for name in (source.tombstones, source.config, source.plan) if source.store.exists(name)]
    target.store.publish({name: source.store.get(name) for name in names}, gone)
