"""Shards and the features beside them: do they belong together, and were all made in the same way?"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from schemas.commits import committed_files
from schemas.dataset import (
    FOOTER_FINGERPRINTS,
    FOOTER_SCHEMA_VERSION,
    FOOTER_SHARD_DIGEST,
    SCHEMA_VERSION,
    Layout,
    unit_of,
)
from schemas.shards import shards_of
from training.data.dataset_file import DatasetFile
from training.data.errors import CorruptShard, DatasetProblem

READERS = 8  # files opened at once; on a network file system or in a bucket most of the time is spent waiting
_IN_SHARD = ("lyric_tokens", "speaker")
_ID_LENGTH = 12  # of a fingerprint, in messages


@dataclass(frozen=True)
class Unit:
    """One shard and its features: the same rows in the same order.

    Attributes:
        shard: its file.
        features: feature -> file.
        fingerprints: column -> fingerprint of the stage that made it.
    """

    shard: DatasetFile
    features: Mapping[str, DatasetFile]
    fingerprints: Mapping[str, str]


def find_units(datasets: Iterable[str], features: Sequence[str]) -> tuple[list[Unit], list[CorruptShard]]:
    """The units of some datasets, and those that cannot be read.

    Raises:
        DatasetProblem: a feature is missing or belongs to another shard, the schema has another version, or units
            were made in different ways.
    """
    units: list[Unit] = []
    corrupt: list[CorruptShard] = []
    for dataset in datasets:
        layout = Layout.at(dataset)
        committed = committed_files(layout)  # none where a dataset comes without records
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(partial(_unit_or_problem, layout, features, committed), _shards(layout, committed))
            for unit in found:
                if isinstance(unit, CorruptShard):
                    corrupt.append(unit)
                else:
                    units.append(unit)
    _check_same_origin(units)
    return units, corrupt


def _shards(layout: Layout, committed: Mapping[str, str]) -> list[str]:
    found = [name for name in shards_of(layout, committed) if unit_of(name) is not None]
    if not found:
        raise DatasetProblem(f"{layout.url} holds no shards: give a folder that `songmill curate` wrote")
    return found


def _unit_or_problem(
    layout: Layout, features: Sequence[str], committed: Mapping[str, str], name: str
) -> Unit | CorruptShard:
    try:
        return _unit(layout, features, committed, name)
    except CorruptShard as problem:
        return problem


def _unit(layout: Layout, features: Sequence[str], committed: Mapping[str, str], name: str) -> Unit:
    number = unit_of(name)
    assert number is not None
    shard = DatasetFile(layout.store, name)
    files = {feature: DatasetFile(layout.store, layout.feature_file(feature, number)) for feature in features}
    missing = [feature for feature, file in files.items() if not layout.store.exists(file.name)]
    if missing:
        raise DatasetProblem(
            f"{shard} has no {', '.join(missing)}: `songmill curate --add {','.join(missing)} {layout.url}` adds "
            "them, and `songmill train dit --from-audio` does without"
        )
    digest = committed.get(name) or _digest(shard)
    schema = _checked_schema(shard)
    for column in _IN_SHARD:
        if column not in schema.names:
            raise DatasetProblem(f"{shard} has no column {column}: curate it with that stage")
    fingerprints = {column: _fingerprint(shard, schema, column) for column in _IN_SHARD}
    for feature, file in files.items():
        schema = _checked_schema(file)
        if (schema.metadata or {}).get(FOOTER_SHARD_DIGEST) != digest.encode():
            raise DatasetProblem(f"{file} belongs to another shard than {shard}: `songmill curate` makes it anew")
        fingerprints[feature] = _fingerprint(file, schema, feature)
    return Unit(shard, files, fingerprints)


def _digest(file: DatasetFile) -> str:
    try:
        return hashlib.sha256(file.store.get(file.name)).hexdigest()
    except OSError as problem:
        raise CorruptShard(str(file), str(problem)) from problem


def _checked_schema(file: DatasetFile) -> pa.Schema:
    schema = file.schema()
    version = (schema.metadata or {}).get(FOOTER_SCHEMA_VERSION, b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise DatasetProblem(f"{file} has schema version {version}, this trainer reads {SCHEMA_VERSION}")
    return schema


def _fingerprint(file: DatasetFile, schema: pa.Schema, column: str) -> str:
    fingerprints = json.loads((schema.metadata or {}).get(FOOTER_FINGERPRINTS, b"{}"))
    if column not in fingerprints:
        raise DatasetProblem(f"{file} does not say what made {column}: its footer has no fingerprint of it")
    return str(fingerprints[column])


def _check_same_origin(units: Iterable[Unit]) -> None:
    made: defaultdict[str, dict[str, list[DatasetFile]]] = defaultdict(dict)
    for unit in units:
        for column, fingerprint in unit.fingerprints.items():
            made[column].setdefault(fingerprint, []).append(unit.features.get(column, unit.shard))
    for column, origins in made.items():
        if len(origins) > 1:
            ways = "; ".join(
                f"{fingerprint[:_ID_LENGTH]} in {files[0]}" + (f" and {len(files) - 1} more" if files[1:] else "")
                for fingerprint, files in origins.items()
            )
            raise DatasetProblem(
                f"{column} was made in {len(origins)} ways: {ways}; `songmill curate --update` makes it anew"
            )
