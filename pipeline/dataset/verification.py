"""`songmill verify`: check that all committed files are intact and that every row is committed exactly once."""

from collections import Counter
from collections.abc import Collection, Mapping

from pipeline.dataset.ledger import Ledger, unit_files
from pipeline.dataset.stored_bytes import is_sound
from schemas.commits import Commit
from schemas.dataset import FOOTER_SCHEMA_VERSION, FOOTER_SHARD_DIGEST, SCHEMA_VERSION, Layout
from schemas.storage.parquet import read_parquet, schema_of
from schemas.storage.store import StorageError


def verify_dataset(layout: Layout) -> list[str]:
    """Problems of a dataset, one line each; an empty list if it is intact.

    Raises:
        NoDataset: the folder is not a dataset.
    """
    layout.require()
    ledger = Ledger(layout).read()
    problems = [problem for commit in ledger.commits.values() for problem in _unit_problems(layout, commit)]
    renaming = ["renaming of moved rows is unfinished; the next curate completes it"] * layout.store.exists(
        layout.moves
    )
    return problems + renaming + _row_problems(ledger) + _stray_files(layout, ledger)


def _unit_problems(layout: Layout, commit: Commit) -> list[str]:
    problems, sound = [], []
    for name, digest in commit.files.items():
        try:
            if is_sound(layout.store, name, digest):
                sound.append(name)
            else:
                problems.append(f"{name}: content differs from what was committed")
        except FileNotFoundError:
            problems.append(f"{name}: missing")
        except StorageError as error:
            problems.append(f"{name}: cannot be read: {error}")
    found: list[str] = []
    for name in sound:
        footer = schema_of(layout.store, name).metadata or {}
        if name.startswith("features/"):
            problems += _feature_problems(layout, commit, name, footer, sound)
        else:
            found += _row_ids(layout, name)
        problems += _schema_problems(name, footer)
    if not problems and sorted(found) != sorted(commit.rows):
        problems.append(f"unit {commit.unit}: its files have {len(found)} rows, its commit record {len(commit.rows)}")
    return problems


def _schema_problems(name: str, footer: Mapping[bytes, bytes]) -> list[str]:
    version = footer.get(FOOTER_SCHEMA_VERSION)
    if version == str(SCHEMA_VERSION).encode():
        return []
    return [f"{name}: schema version {version!r}, expected {SCHEMA_VERSION}"]


def _feature_problems(
    layout: Layout, commit: Commit, name: str, footer: Mapping[bytes, bytes], sound: Collection[str]
) -> list[str]:
    """A feature file must match its shard. Row ids are compared only if the shard is intact and so readable."""
    shard = layout.shard_file(commit.unit)
    if footer.get(FOOTER_SHARD_DIGEST) != commit.files[shard].encode():
        return [f"{name}: it was written for another version of {shard}"]
    if shard in sound and _row_ids(layout, name) != _row_ids(layout, shard):
        return [f"{name}: its rows differ from those of {shard} or are in another order"]
    return []


def _row_ids(layout: Layout, name: str) -> list[str]:
    return read_parquet(layout.store, name, ["row_id"])["row_id"].to_pylist()


def _row_problems(ledger: Ledger) -> list[str]:
    counted = Counter(row_id for commit in ledger.commits.values() for row_id in commit.rows)
    return [f"row {row_id}: committed {count} times" for row_id, count in counted.items() if count > 1]


def _stray_files(layout: Layout, ledger: Ledger) -> list[str]:
    known = {*ledger.files}
    strays = [name for name in unit_files(layout) if name not in known]
    return [
        *(f"{name}: not committed; the next curate deletes it" for name in strays),
        *(f"{name}: not written to its end; the next curate deletes it" for name in layout.store.strays()),
    ]
