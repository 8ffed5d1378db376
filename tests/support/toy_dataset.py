"""Small dataset folders of random songs, in the very format that `songmill curate` writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas import columns, ssl_codec
from schemas.commits import Commit, RowState
from schemas.dataset import (
    FOOTER_FINGERPRINTS,
    FOOTER_PLAN,
    FOOTER_SCHEMA_VERSION,
    FOOTER_SHARD_DIGEST,
    SCHEMA_VERSION,
)
from schemas.files import file_digest
from stages.text.bpe import LINE_END_ID, START_ID

LATENT_HZ = 44100 / 4096
VOCABULARY_SIZE = 1240

_SOURCES = ("jamendo", "fma", "own")
_LICENSES = ("CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0")
_LANGUAGES = ("en", "de", "ja", None)
_NATIVE_HZ = 50.0


def write_dataset(
    root: Path,
    songs: int = 24,
    seed: int = 0,
    *,
    shards: int = 3,
    first_song: int = 0,
    row_group: int = 64,
    frames: tuple[int, int] = (40, 400),
    variants: Sequence[str] = ("simplified", "descriptive"),
    text_dim: int = 32,
    text_tokens: tuple[int, int] = (3, 30),
    lyric_ids: tuple[int, int] = (8, 60),
    ssl: Mapping[str, int] | None = None,
    native_ssl: bool = False,
    speaker_dim: int = 16,
    nulls: Mapping[int, str] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    committed: bool = True,
) -> Path:
    """Write a dataset; the same arguments give the same content.

    Args:
        root: its folder.
        songs: how many.
        seed: of everything random. A song depends on it and on its number alone.
        shards: how many.
        first_song: number of the first one; two datasets with the same seed share the songs they both number.
        row_group: rows of a row group.
        frames: fewest and most latent frames of a song.
        variants: of the caption. Every third song has the first one only.
        text_dim: of the text embeddings.
        text_tokens: fewest and most of a text.
        lyric_ids: fewest and most of the lyrics.
        ssl: encoder -> dim; by default `{"whisper_base": 12}`.
        native_ssl: store the encoders' states at 50 Hz instead of the latent rate.
        speaker_dim: of the speaker embeddings. Songs without vocals, every fourth, have zeros.
        nulls: song number -> the column that is null there.
        fingerprints: of columns that are not to have the usual ones.
        models: of columns that are not to have the usual ones.
        committed: write commit records.
    """
    ssl = {"whisper_base": 12} if ssl is None else ssl
    named = {name: f"toy-{name}@r1" for name in ("latents", "ssl", "text_embedding")} | dict(models or {})
    rows = []
    for number in range(first_song, first_song + songs):
        song = _Song(np.random.default_rng([seed, number]), frames)
        row = song.facts(f"{seed:04x}{number:012x}", lyric_ids, speaker_dim)
        row["latents"] = song.latents(named["latents"])
        row["ssl"] = song.ssl(ssl, native_ssl, named["ssl"])
        spoken = variants[:1] if number % 3 == 2 else variants
        row["text_embedding"] = song.texts(spoken, text_dim, text_tokens, named["text_embedding"])
        row.update(dict.fromkeys([nulls[number]]) if nulls and number in nulls else {})
        rows.append(row)
    schema = _schema(ssl)
    table = pa.Table.from_pylist(rows, schema)
    made = {name: f"{name:0<32.32}" for name in schema.names} | dict(fingerprints or {})
    size = -(-songs // shards)
    for unit, start in enumerate(range(0, songs, size)):
        write_unit(root, unit, table.slice(start, size), made, row_group, committed)
    return root


def _schema(ssl: Mapping[str, int]) -> pa.Schema:
    return pa.schema(
        [
            *columns.IDENTITY,
            ("audio", columns.AUDIO),
            ("quality", columns.QUALITY),
            ("transcript", columns.TRANSCRIPT),
            ("lyric_tokens", columns.LYRIC_TOKENS),
            ("speaker", columns.SPEAKER),
            ("latents", columns.LATENTS),
            ("ssl", columns.ssl_struct(*ssl)),
            ("text_embedding", columns.TEXT_EMBEDDING),
            ("verdict", columns.VERDICT),
        ]
    )


class _Song:
    """One random song."""

    def __init__(self, rng: np.random.Generator, frames: tuple[int, int]) -> None:
        self._rng = rng
        self._frames = int(rng.integers(frames[0], frames[1] + 1))
        self._duration_s = (self._frames - rng.uniform(0.1, 0.9)) / LATENT_HZ  # the codec rounds up

    def facts(self, track_id: str, lyric_ids: tuple[int, int], speaker_dim: int) -> dict[str, Any]:
        """The columns of the shard itself."""
        rng = self._rng
        language = _LANGUAGES[rng.integers(len(_LANGUAGES))]
        voice = np.abs(rng.standard_normal(speaker_dim)) * (rng.integers(4) > 0)
        ids = rng.integers(3, VOCABULARY_SIZE, rng.integers(lyric_ids[0], lyric_ids[1] + 1))
        return {
            "row_id": f"row-{track_id}",
            "track_id": track_id,
            "uri": f"{track_id}.flac",
            "source": _SOURCES[rng.integers(len(_SOURCES))],
            "license": _LICENSES[rng.integers(len(_LICENSES))],
            "title": f"Song {track_id}",
            "audio": {"duration_s": self._duration_s, "sample_rate_hz": 44100, "channels": 2, "codec": "flac"},
            "quality": {"bandwidth_hz": rng.uniform(8000, 22050), "loudness_lufs": rng.uniform(-24, -6)},
            "transcript": {"text": "la la", "language": language} if language else None,
            "lyric_tokens": {"ids": [START_ID, *ids.tolist(), LINE_END_ID], "text": "la la", "vocabulary": "toy"},
            "speaker": {"embedding": (voice / max(np.linalg.norm(voice), 1e-9)).tolist(), "model": "toy-speaker@r1"},
            "verdict": {"status": "kept", "attempts": 1},
        }

    def latents(self, model: str) -> dict[str, Any]:
        """Float16 [T, 8, 16]."""
        values = self._rng.standard_normal((self._frames, 8, 16), np.float32).astype("<f2")
        return {"frames": self._frames, "data": values.tobytes(), "model": model}

    def ssl(self, dims: Mapping[str, int], native: bool, model: str) -> dict[str, Any]:
        """States at 50 Hz, as they are or averaged to the latent rate."""
        states = {name: self._states(dim, native) for name, dim in dims.items()}
        return {**states, "model": model}

    def _states(self, dim: int, native: bool) -> dict[str, Any]:
        count = int(self._duration_s * _NATIVE_HZ)
        vectors = ssl_codec.normalize(self._rng.standard_normal((count, dim), np.float32))
        if not native:
            vectors = ssl_codec.pool(vectors, _NATIVE_HZ, int(self._duration_s * LATENT_HZ), LATENT_HZ)
        scales, data = ssl_codec.encode(vectors)
        rate_hz = _NATIVE_HZ if native else LATENT_HZ
        return {"frames": len(vectors), "dim": dim, "rate_hz": rate_hz, "scales": scales, "data": data}

    def texts(self, variants: Sequence[str], dim: int, tokens: tuple[int, int], model: str) -> list[dict[str, Any]]:
        """Float16 [tokens, dim] a variant."""
        items = []
        for variant in variants:
            count = int(self._rng.integers(tokens[0], tokens[1] + 1))
            data = self._rng.standard_normal((count, dim), np.float32).astype("<f2").tobytes()
            items.append({"variant": variant, "tokens": count, "dim": dim, "data": data, "model": model})
        return items


def write_unit(
    root: Path, unit: int, rows: pa.Table, fingerprints: Mapping[str, str], row_group: int, committed: bool
) -> None:
    """Write rows as a shard and the features beside it."""
    footer = {
        FOOTER_SCHEMA_VERSION: str(SCHEMA_VERSION).encode(),
        FOOTER_PLAN: b"toy",
        FOOTER_FINGERPRINTS: json.dumps(dict(fingerprints), sort_keys=True).encode(),
    }
    features = [name for name in ("latents", "ssl", "text_embedding") if name in rows.column_names]
    shard = root / f"shards/train-{unit:06d}.parquet"
    _write(rows.drop_columns(features), shard, footer, row_group)
    files = [shard]
    footer[FOOTER_SHARD_DIGEST] = file_digest(shard).encode()
    for name in features:
        files.append(root / f"features/{name}/train-{unit:06d}.parquet")
        _write(rows.select(["row_id", name]), files[-1], footer, row_group)
    if committed:
        ids = zip(rows["row_id"].to_pylist(), rows["track_id"].to_pylist(), strict=True)
        commit = Commit(
            unit=unit,
            plan="toy",
            files={str(path.relative_to(root)): file_digest(path) for path in files},
            rows={row_id: RowState(status="kept", track_id=track_id, basis="toy") for row_id, track_id in ids},
            timings={},
        )
        commits = root / "_songmill/commits"
        commits.mkdir(parents=True, exist_ok=True)
        (commits / f"{unit:06d}.json").write_text(commit.model_dump_json(), encoding="utf-8")


def _write(rows: pa.Table, path: Path, footer: Mapping[bytes, bytes], row_group: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows.replace_schema_metadata({**(rows.schema.metadata or {}), **footer})
    pq.write_table(table, path, compression="zstd", row_group_size=row_group)
