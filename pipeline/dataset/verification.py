"""`songmill verify`: check that all committed files are intact and that every row is committed exactly once."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.dataset.ledger import Ledger
from schemas.commits import Commit
from schemas.dataset import FEATURES, FOOTER_SCHEMA_VERSION, FOOTER_SHARD_DIGEST, SCHEMA_VERSION, Layout, unit_of
from schemas.files import file_digest


def verify_dataset(layout: Layout) -> list[str]:
    """Problems of a dataset, one line each; an empty list if it is intact.

    Raises:
        NoDataset: the folder is not a dataset.
    """
    layout.require()
    ledger = Ledger(layout).read()
    problems = [problem for commit in ledger.commits.values() for problem in _unit_problems(layout, commit)]
    renaming = ["renaming of moved rows is unfinished; the next curate completes it"] * layout.moves.is_file()
    return problems + renaming + _row_problems(ledger) + _stray_files(layout, ledger)


def _unit_problems(layout: Layout, commit: Commit) -> list[str]:
    problems, sound = [], {}
    for name, digest in commit.files.items():
        path = layout.root / name
        if not path.exists():
            problems.append(f"{name}: missing")
        elif file_digest(path) != digest:
            problems.append(f"{name}: content differs from what was committed")
        else:
            sound[name] = path
    found: list[str] = []
    for name, path in sound.items():
        if path.parent.name in FEATURES:
            shard = layout.name_of(layout.shard_file(commit.unit))
            problems += _feature_problems(name, path, shard, commit.files[shard], sound.get(shard))
        else:
            found += _row_ids(path)
        problems += _schema_problems(name, path)
    if not problems and sorted(found) != sorted(commit.rows):
        problems.append(f"unit {commit.unit}: its files have {len(found)} rows, its commit record {len(commit.rows)}")
    return problems


def _schema_problems(name: str, path: Path) -> list[str]:
    version = (pq.read_metadata(path).metadata or {}).get(FOOTER_SCHEMA_VERSION)
    if version == str(SCHEMA_VERSION).encode():
        return []
    return [f"{name}: schema version {version!r}, expected {SCHEMA_VERSION}"]


def _feature_problems(name: str, path: Path, shard: str, digest: str, sound_shard: Path | None) -> list[str]:
    """A feature file must match its shard. Row ids are compared only if the shard is intact and so readable."""
    if (pq.read_metadata(path).metadata or {}).get(FOOTER_SHARD_DIGEST) != digest.encode():
        return [f"{name}: it was written for another version of {shard}"]
    if sound_shard and _row_ids(path) != _row_ids(sound_shard):
        return [f"{name}: its rows differ from those of {shard} or are in another order"]
    return []


def _row_ids(path: Path) -> list[str]:
    return pq.read_table(path, columns=["row_id"])["row_id"].to_pylist()


def _row_problems(ledger: Ledger) -> list[str]:
    counted = Counter(row_id for commit in ledger.commits.values() for row_id in commit.rows)
    return [f"row {row_id}: committed {count} times" for row_id, count in counted.items() if count > 1]


def _stray_files(layout: Layout, ledger: Ledger) -> list[str]:
    known = {name for commit in ledger.commits.values() for name in commit.files}
    folders = (layout.shards, layout.quarantine, *(layout.features(name) for name in FEATURES))
    files = (path for folder in folders for path in sorted(folder.glob("*.parquet")) if unit_of(path) is not None)
    names = map(layout.name_of, files)
    return [f"{name}: not committed; the next curate deletes it" for name in names if name not in known]
