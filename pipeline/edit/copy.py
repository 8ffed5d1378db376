"""`songmill copy`: a dataset from one place to another, a folder or a bucket each, unit by unit.

Every file is compared with the digest of its commit record as it is read. The plan goes first, if there is anything to
change, and comes last: between, the copy is no dataset to any command, and the same command goes on with it.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pipeline.dataset.marks import Mark, read_marks, replace_marks
from pipeline.dataset.stored_bytes import chunks
from pipeline.dataset.writing import describe_dataset, exclusive_lock
from pipeline.errors import DataProblem
from pipeline.planning.plan import Plan
from schemas.commits import Record, read_records
from schemas.dataset import Layout


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
    if source.store.exists(source.moves):
        raise DataProblem(
            f"{source.url}: a run was stopped while it renamed rows; songmill curate {source.url} ends that"
        )
    with exclusive_lock(target):
        records = _records(source)
        files = {unit: Record.model_validate_json(record).files for unit, record in records.items()}
        others = _others(target, records, mirror)
        todo = [unit for unit in records if not _has_unit(source, target, unit, records[unit], files[unit])]
        if (todo or others) and target.store.exists(target.plan):
            target.store.publish({}, [target.plan])
        for unit, named in others.items():
            target.store.publish({}, [target.commit_file(unit), *named])
        size = 0
        for done, unit in enumerate(todo):
            progress(done, len(todo))
            fetched = {name: _fetched(source, name, digest, target) for name, digest in files[unit].items()}
            size += sum(path.stat().st_size for path in fetched.values())
            target.store.publish({**fetched, target.commit_file(unit): records[unit]})
        if _records(source) != records:
            raise DataProblem(f"{source.url} was changed meanwhile; the same command goes on with what it is now")
        _copy_the_rest(source, target, mirror)
        progress(len(todo), len(todo))
        describe_dataset(target, Plan.model_validate_json(target.store.get(target.plan)))
    return Copied(len(todo), len(records) - len(todo), len(others), size)


def _records(source: Layout) -> dict[int, bytes]:
    """Unit -> its record as it is stored.

    Raises:
        DataProblem: a record that was there a moment ago is gone.
    """
    try:
        return {record.unit: source.store.get(source.commit_file(record.unit)) for record in read_records(source)}
    except FileNotFoundError as error:
        raise DataProblem(f"{source.url} is being changed; copy it when that is done") from error


def _others(target: Layout, records: Mapping[int, bytes], mirror: bool) -> dict[int, list[str]]:
    """Unit -> names of its files, of units of the target that are not the source's.

    Raises:
        DataProblem: there are some, without `mirror`.
    """
    others = {
        record.unit: [*record.files]
        for record in read_records(target)
        if target.store.get(target.commit_file(record.unit)) != records.get(record.unit)
    }
    if others and not mirror:
        raise DataProblem(
            f"{target.url} has {len(others)} units that the source does not have, such as {min(others)}: copy to "
            "another place, or add --mirror to remove them"
        )
    return others


def _has_unit(source: Layout, target: Layout, unit: int, record: bytes, files: Mapping[str, str]) -> bool:
    """Whether a unit is in the target, with files of the source's sizes."""
    store, name = target.store, target.commit_file(unit)
    return (
        store.exists(name)
        and store.get(name) == record
        and all(store.exists(file) and store.size(file) == source.store.size(file) for file in files)
    )


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


def _copy_the_rest(source: Layout, target: Layout, mirror: bool) -> None:
    """The scan table, marks, tombstones, the configuration, and last the plan."""
    parts = source.store.names(source.scan)
    gone = {*target.store.names(target.scan)} - {*parts}
    for name in parts:
        content = source.store.get(name)
        if not target.store.exists(name) or target.store.get(name) != content:
            path = target.store.scratch / f"copied-{uuid4().hex}"
            path.write_bytes(content)
            target.store.publish({name: path})
    _copy_marks(source, target, mirror)
    documents = (source.tombstones, source.config, source.plan)
    names = [name for name in documents if source.store.exists(name)]
    target.store.publish({name: source.store.get(name) for name in names}, gone | ({*documents} - {*names}))


def _copy_marks(source: Layout, target: Layout, mirror: bool) -> None:
    """Marks that were set in the target stay, unless it is to mirror the source."""
    theirs, ours = read_marks(source), read_marks(target)
    changed: dict[str, Mark | None] = {row_id: mark for row_id, mark in theirs.items() if mirror or row_id not in ours}
    if mirror:
        changed |= dict.fromkeys(ours.keys() - theirs.keys())
    if changed:
        target.store.confirm()
        replace_marks(target, changed)
