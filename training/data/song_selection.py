"""Selects the songs to train on, reading only small columns of the datasets."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.dataset import Layout
from schemas.storage.store import Store
from schemas.tables import MARKS
from training.data.config import DataConfig
from training.data.errors import CorruptShard, DatasetProblem
from training.data.feature_summary import FeatureSummary, read_feature_summary, single_value
from training.data.song_index import FeatureMaker, SongIndex, Widths
from training.data.units import READERS, Unit, find_units


def open_songs(
    config: DataConfig, models: Mapping[str, str] | None = None, maker: FeatureMaker | None = None
) -> SongIndex:
    """Index the songs of the datasets that can be trained on.

    Args:
        config: datasets, condition, encoders.
        models: feature -> the model that must have computed it, e.g. the autoencoder of the starting checkpoint.
        maker: computes the features when songs are read; None reads those stored beside the shards.

    Raises:
        DatasetProblem: the units do not fit together (see `find_units`), the condition is not valid SQL or names an
            unknown column, a feature was computed by another model, or no song is left.
        CorruptShard: a file cannot be read, and `config.on_corrupt` is `stop`.
    """
    features = ["latents", "text_embedding", *(["ssl"] if config.ssl else [])]
    found, corrupt = find_units(config.datasets, () if maker else features)
    with ThreadPoolExecutor(READERS) as pool:
        summaries = list(pool.map(lambda unit: _summary_or_problem(unit, config, maker), found))
    corrupt += [problem for problem in summaries if isinstance(problem, CorruptShard)]
    if corrupt and config.on_corrupt == "stop":
        raise corrupt[0]
    units = [unit for unit, summary in zip(found, summaries, strict=True) if isinstance(summary, FeatureSummary)]
    readable = [summary for summary in summaries if isinstance(summary, FeatureSummary)]
    if not units:
        raise DatasetProblem("no shard can be read: " + "; ".join(map(str, corrupt)))
    rows = pa.concat_tables(summary.rows for summary in readable)
    chosen, left_out = _unmarked(_query(units, config.where), units)
    left_out["where"] = rows.num_rows - chosen.num_rows - left_out["marked drop"]
    table, incomplete = _select(chosen, rows, [summary.rows.num_rows for summary in readable])
    left_out = {why: count for why, count in {**left_out, **incomplete}.items() if count}
    if not table.num_rows:
        reasons = ", ".join(f"{count} for {reason}" for reason, count in left_out.items())
        raise DatasetProblem(f"no song is left to train on; left out: {reasons}")
    made_by = {
        name: single_value({summary.models[name] for summary in readable}, f"model of {name}") for name in features
    }
    _check_models(made_by, models or {})
    return SongIndex(table, units, _widths(readable, units), made_by, left_out, corrupt, maker)


def _summary_or_problem(unit: Unit, config: DataConfig, maker: FeatureMaker | None) -> FeatureSummary | CorruptShard:
    try:
        return maker.summarize(unit, config) if maker else read_feature_summary(unit, config)
    except CorruptShard as problem:
        return problem


def _query(units: Sequence[Unit], where: str | None) -> pa.Table:
    """The shards' rows that match the condition: `unit`, `row` and what identifies and describes a song."""
    numbers = {unit.shard.address: number for number, unit in enumerate(units)}
    with duckdb.connect() as connection:
        for store in _stores(units):
            store.let_read(connection)
        shards = connection.read_parquet(list(numbers), filename=True, file_row_number=True, union_by_name=True)
        heard = "transcript.language" if "transcript" in shards.columns else "null"
        try:
            chosen = shards.filter(where) if where else shards
            table = chosen.project(
                "coalesce(track_id, row_id) as track_id, row_id, filename, file_row_number::int as row, "
                "coalesce(source, 'unknown') as source, coalesce(license, 'unknown') as license, "
                f"coalesce({heard}, language, 'unknown') as language"
            ).to_arrow_table()
        except duckdb.Error as problem:
            columns = ", ".join(name for name in shards.columns if name not in ("filename", "file_row_number"))
            what, why = f"where {where!r}" if where else "the shards", str(problem).partition("\n\nLINE")[0]
            raise DatasetProblem(f"{what}: {why}\nThe shards have these columns: {columns}") from problem
    unit = pa.array([numbers[name] for name in table["filename"].to_pylist()], pa.int32())
    return table.drop_columns("filename").append_column("unit", unit)


def _unmarked(rows: pa.Table, units: Sequence[Unit]) -> tuple[pa.Table, dict[str, int]]:
    """The rows that are not marked `drop` in their dataset, and how many are."""
    marked = np.zeros(rows.num_rows, dtype=bool)
    for store in _stores(units):
        here = np.array([unit.shard.store == store for unit in units])[rows["unit"].to_numpy()]
        marked |= here & pc.is_in(rows["row_id"], _dropped(Layout(store))).to_numpy()
    return rows.filter(~marked).drop_columns("row_id"), {"marked drop": int(marked.sum())}


def _stores(units: Sequence[Unit]) -> set[Store]:
    return {unit.shard.store for unit in units}


def _dropped(layout: Layout) -> pa.Array:
    if not layout.store.exists(layout.marks):
        return pa.array([], pa.string())
    written = pa.BufferReader(layout.store.get(layout.marks))
    return pq.read_table(written, schema=MARKS, filters=pc.field("mark") == "drop")["row_id"].combine_chunks()


def _select(chosen: pa.Table, features: pa.Table, unit_rows: Sequence[int]) -> tuple[pa.Table, dict[str, int]]:
    """The chosen rows that have every feature, each track once, sorted by track id; and how many are left out."""
    first = np.concatenate([[0], np.cumsum(unit_rows)])
    places = first[chosen["unit"].to_numpy()] + chosen["row"].to_numpy()
    for name in features.column_names:
        chosen = chosen.append_column(name, features[name].take(pa.array(places)))
    lacks = chosen["lacks"]
    left_out = {count["values"]: count["counts"] for count in pc.value_counts(lacks.drop_null()).to_pylist()}
    complete = chosen.filter(pc.is_null(lacks)).drop_columns("lacks")
    ordered = complete.sort_by([("track_id", "ascending"), ("unit", "ascending"), ("row", "ascending")])
    ids = ordered["track_id"].combine_chunks()
    new = np.ones(len(ids), dtype=bool)
    new[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    left_out["duplicate"] = int((~new).sum())
    songs = ordered.filter(new)
    keys = np.array([_key(track_id) for track_id in songs["track_id"].to_pylist()], np.uint64)
    return songs.append_column("key", pa.array(keys)), left_out


def _key(track_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(track_id.encode(), digest_size=8).digest(), "little")


def _widths(summaries: Sequence[FeatureSummary], units: Sequence[Unit]) -> Widths:
    found: dict[tuple[str, str], Any] = {
        (column, field): single_value(
            frozenset().union(*(summary.sizes[column, field] for summary in summaries)), f"{column}.{field}"
        )
        for column, field in summaries[0].sizes
    }
    encoders = [column.removeprefix("ssl.") for column, field in found if field == "rate_hz"]
    return Widths(
        text=found["text_embedding", "dim"],
        speaker=_speaker_width(units),
        ssl={encoder: found[f"ssl.{encoder}", "dim"] for encoder in encoders},
        ssl_rate_hz={encoder: found[f"ssl.{encoder}", "rate_hz"] for encoder in encoders},
    )


def _speaker_width(units: Sequence[Unit]) -> int:
    for unit in units:
        speakers = unit.shard.read(["speaker.embedding"])["speaker"].combine_chunks()
        embeddings = pc.struct_field(speakers, "embedding").drop_null()
        if len(embeddings):
            return len(embeddings[0])
    raise DatasetProblem("no song has a speaker embedding: curate with the stage speaker")


def _check_models(found: Mapping[str, str | None], expected: Mapping[str, str]) -> None:
    for feature, model in expected.items():
        if found.get(feature) != model:
            raise DatasetProblem(f"{feature} were made by {found.get(feature)}, the model expects those of {model}")
