"""Shards and the features beside them: do they belong together, and were all made in the same way?"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.commits import committed_files
from schemas.dataset import (
    FOOTER_FINGERPRINTS,
    FOOTER_SCHEMA_VERSION,
    FOOTER_SHARD_DIGEST,
    SCHEMA_VERSION,
    Layout,
    unit_of,
)
from schemas.files import file_digest
from training.data.errors import CorruptShard, DatasetProblem

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

    shard: Path
    features: Mapping[str, Path]
    fingerprints: Mapping[str, str]


def find_units(roots: Iterable[Path], features: Sequence[str]) -> tuple[list[Unit], list[CorruptShard]]:
    """The units of some datasets, and those that cannot be read.

    Raises:
        DatasetProblem: a feature is missing or belongs to another shard, the schema has another version, or units
            were made in different ways.
    """
    units, corrupt = [], []
    for root in roots:
        layout = Layout(root)
        committed = committed_files(layout)  # none where a dataset comes without records
        for shard in _shards(layout, committed):
            try:
                units.append(_unit(layout, shard, features, committed))
            except CorruptShard as problem:
                corrupt.append(problem)
    _check_same_origin(units)
    return units, corrupt


def read_schema(path: Path) -> pa.Schema:
    """Arrow schema and footer of a Parquet file.

    Raises:
        CorruptShard: it cannot be read.
    """
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as problem:
        raise CorruptShard(str(path), _first_line(problem)) from problem


def read_rows(path: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a whole Parquet file; fields of structs by their dotted paths.

    Raises:
        CorruptShard: it cannot be read.
    """
    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            return file.read(columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as problem:
        raise CorruptShard(str(path), _first_line(problem)) from problem


def _first_line(problem: BaseException) -> str:
    return str(problem).partition("\n")[0].rstrip(".")


def _shards(layout: Layout, committed: Mapping[str, str]) -> list[Path]:
    found = sorted(path for path in layout.shards.glob("*.parquet") if unit_of(path) is not None)
    if committed:  # a file without a record does not count
        found = sorted(layout.root / name for name in committed if Path(name).parent.name == layout.shards.name)
    if not found:
        raise DatasetProblem(f"{layout.root} holds no shards: give a folder that `songmill curate` wrote")
    return found


def _unit(layout: Layout, shard: Path, features: Sequence[str], committed: Mapping[str, str]) -> Unit:
    number = unit_of(shard)
    assert number is not None
    paths = {name: layout.feature_file(name, number) for name in features}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        raise DatasetProblem(
            f"{shard} has no {', '.join(missing)}: `songmill curate --add {','.join(missing)} {layout.root}` adds "
            "them, and `songmill train dit --from-audio` does without"
        )
    digest = committed.get(layout.name_of(shard)) or _digest(shard)
    schema = _checked_schema(shard)
    for column in _IN_SHARD:
        if column not in schema.names:
            raise DatasetProblem(f"{shard} has no column {column}: curate it with that stage")
    fingerprints = {column: _fingerprint(shard, schema, column) for column in _IN_SHARD}
    for name, path in paths.items():
        schema = _checked_schema(path)
        if (schema.metadata or {}).get(FOOTER_SHARD_DIGEST) != digest.encode():
            raise DatasetProblem(f"{path} belongs to another shard than {shard}: `songmill curate` makes it anew")
        fingerprints[name] = _fingerprint(path, schema, name)
    return Unit(shard, paths, fingerprints)


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as problem:
        raise CorruptShard(str(path), _first_line(problem)) from problem


def _checked_schema(path: Path) -> pa.Schema:
    schema = read_schema(path)
    version = (schema.metadata or {}).get(FOOTER_SCHEMA_VERSION, b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise DatasetProblem(f"{path} has schema version {version}, this trainer reads {SCHEMA_VERSION}")
    return schema


def _fingerprint(path: Path, schema: pa.Schema, column: str) -> str:
    fingerprints = json.loads((schema.metadata or {}).get(FOOTER_FINGERPRINTS, b"{}"))
    if column not in fingerprints:
        raise DatasetProblem(f"{path} does not say what made {column}: its footer has no fingerprint of it")
    return str(fingerprints[column])


def _check_same_origin(units: Iterable[Unit]) -> None:
    made: defaultdict[str, dict[str, list[Path]]] = defaultdict(dict)
    for unit in units:
        for column, fingerprint in unit.fingerprints.items():
            made[column].setdefault(fingerprint, []).append(unit.features.get(column, unit.shard))
    for column, origins in made.items():
        if len(origins) > 1:
            ways = "; ".join(
                f"{fingerprint[:_ID_LENGTH]} in {paths[0]}" + (f" and {len(paths) - 1} more" if paths[1:] else "")
                for fingerprint, paths in origins.items()
            )
            raise DatasetProblem(
                f"{column} was made in {len(origins)} ways: {ways}; `songmill curate --update` makes it anew"
            )
