"""A summary of a unit's features, from their small columns: lengths, widths, models, missing rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from training.data.config import DataConfig
from training.data.dataset_file import DatasetFile
from training.data.errors import DatasetProblem
from training.data.units import Unit


@dataclass(frozen=True)
class FeatureSummary:
    """Summary of one unit.

    Attributes:
        rows: table with `frames` (int32, latent frames) and `lacks` (the first feature missing from a row, or null).
        sizes: (column, field) -> the values found.
        models: feature -> the model that computed it.
    """

    rows: pa.Table
    sizes: Mapping[tuple[str, str], frozenset[Any]]
    models: Mapping[str, str | None]


def read_feature_summary(unit: Unit, config: DataConfig) -> FeatureSummary:
    """Read the small columns of a unit's features.

    Raises:
        CorruptShard: a file cannot be read.
        DatasetProblem: a feature has other rows than the shard, lacks an encoder, or was computed by several models.
    """
    latents = _read(unit, "latents", ["frames", "model"])
    texts = _read(unit, "text_embedding", [f"list.element.{field}" for field in ("variant", "dim", "model")])
    items = pc.list_flatten(texts)
    present = {"latents": _positive(pc.struct_field(latents, "frames"))}
    sizes = {("text_embedding", "dim"): _values(pc.struct_field(items, "dim"))}
    made_by = {"latents": pc.struct_field(latents, "model"), "text_embedding": pc.struct_field(items, "model")}
    if config.ssl:
        states = _read_ssl(unit, config.ssl)
        made_by["ssl"] = pc.struct_field(states, "model")
        for encoder in config.ssl:
            own = pc.struct_field(states, encoder)
            present[f"ssl.{encoder}"] = _positive(pc.struct_field(own, "frames"))
            sizes |= {(f"ssl.{encoder}", field): _values(pc.struct_field(own, field)) for field in ("dim", "rate_hz")}
    present["text_embedding"] = _has_text(texts, items, config.text_variants)
    lacks = np.full(len(latents), None, dtype=object)
    for name in reversed(present):
        lacks[~present[name]] = name
    frames = pc.fill_null(pc.struct_field(latents, "frames"), 0)
    models = {name: single_value(_values(made), f"model of {unit.features[name]}") for name, made in made_by.items()}
    return FeatureSummary(pa.table({"frames": frames, "lacks": pa.array(lacks, pa.string())}), sizes, models)


def single_value(values: Iterable[Any], what: str) -> Any:
    """The only value, Nones aside; None if there is no other.

    Raises:
        DatasetProblem: there are several values; the message calls them `what`.
    """
    known = sorted({value for value in values if value is not None})
    if len(known) > 1:
        raise DatasetProblem(f"{what} is not the same everywhere: {', '.join(map(str, known))}")
    return known[0] if known else None


def _read(unit: Unit, feature: str, fields: Sequence[str]) -> pa.Array:
    """Fields of a feature, after a check that its rows are the shard's."""
    file = unit.features[feature]
    table = file.read(["row_id", *(f"{feature}.{field}" for field in fields)])
    if not table["row_id"].equals(unit.shard.read(["row_id"])["row_id"]):
        raise DatasetProblem(f"{file} has other rows than {unit.shard}: `songmill verify` says more")
    return table[feature].combine_chunks()


def _read_ssl(unit: Unit, encoders: Sequence[str]) -> pa.Array:
    _check_encoders(unit.features["ssl"], encoders)
    fields = ("frames", "dim", "rate_hz")
    return _read(unit, "ssl", ["model", *(f"{encoder}.{field}" for encoder in encoders for field in fields)])


def _check_encoders(file: DatasetFile, wanted: Sequence[str]) -> None:
    names = [field.name for field in file.schema().field("ssl").type if field.name != "model"]
    if missing := [encoder for encoder in wanted if encoder not in names]:
        raise DatasetProblem(f"{file} has no states of {', '.join(missing)}; it has those of {', '.join(names)}")


def _positive(counts: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.greater(counts, 0), False).to_numpy(zero_copy_only=False))


def _has_text(texts: pa.Array, items: pa.Array, variants: Sequence[str]) -> np.ndarray:
    """Which rows have a caption variant to draw."""
    owners = pc.list_parent_indices(texts)
    if variants:
        owners = owners.filter(pc.is_in(pc.struct_field(items, "variant"), pa.array(variants)))
    has_text = np.zeros(len(texts), dtype=bool)
    has_text[owners.to_numpy()] = True
    return has_text


def _values(column: pa.Array) -> frozenset[Any]:
    return frozenset(pc.unique(column.drop_null()).to_pylist())
