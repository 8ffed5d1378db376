"""One row of a dataset as shown on a page: a plain JSON-compatible tree, whatever columns the row has."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.pages.timeline import timeline
from pipeline.planning.gates import Gate
from schemas import columns
from schemas.dataset import FEATURES

_IDENTITY = ("row_id", "title", "artist", "album", "uri", "source", "license")
_TYPES = {
    "audio": columns.AUDIO,
    "dedup": columns.DEDUP,
    "quality": columns.QUALITY,
    "aesthetics": columns.AESTHETICS,
    "events": columns.EVENTS,
    "vocals": columns.VOCALS,
    "transcript": columns.TRANSCRIPT,
    "lyrics": columns.LYRICS,
    "rhythm": columns.RHYTHM,
    "key": columns.KEY,
    "sections": columns.SECTIONS,
}
_NOT_MEASURED = {*_IDENTITY, "track_id", "language", "given_lyrics", "flags", "verdict", *FEATURES}
_LONGEST_UNIT = 12  # anything longer is a remark rather than a unit
_CAPTIONS = ("simplified", "expanded", "descriptive", "synonyms", "use_cases")


def row_view(row: Mapping[str, Any], gates: Sequence[Gate]) -> dict[str, Any]:
    """What a page shows of a row.

    Args:
        row: a row of the view `tracks` or `quarantine` as a dictionary; any column may be absent or null.
        gates: the thresholds that the row's figures are judged by.

    Returns:
        A JSON-compatible dictionary of the identity columns and
        `verdict` {status, stage, reason, message, attempts};
        `facts` [{name, value}], texts for a reader, only those that are known;
        `scores` [{column, field, value, unit, gates: [{side, bound, passed}]}], every number in every stage's column,
        and every threshold, whose `value` is None if nothing was measured;
        `timeline` (see `pipeline.pages.timeline`);
        `transcript`, `captions` [{variant, text}], `tags` [{name, score}], `flags`, `duplicate_of`, and
        `models` column -> the model that computed it.
    """
    return {
        **{name: row.get(name) for name in _IDENTITY},
        "verdict": _verdict(row),
        "facts": [{"name": name, "value": value} for name, value in _facts(row) if value],
        "scores": _scores(row, gates),
        "timeline": timeline(row),
        "transcript": _struct(row, "transcript").get("text"),
        "captions": [
            {"variant": variant, "text": text}
            for variant in _CAPTIONS
            if (text := _struct(row, "caption").get(variant))
        ],
        "tags": _tags(_struct(row, "tags")),
        "flags": list(row.get("flags") or ()),
        "duplicate_of": _struct(row, "dedup").get("duplicate_of"),
        "models": {name: value["model"] for name, value in _measured(row) if value.get("model")},
    }


def finite(value: Any) -> float | int | None:
    """A finite number; None for anything else, including booleans."""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if numeric and math.isfinite(value) else None


def unit(column: str, name: str) -> str | None:
    """The unit of a figure; None if it has none, or belongs to a user's own stage."""
    known = _TYPES.get(column)
    if known is None or known.get_field_index(name) < 0:
        return None
    stated = (known.field(name).metadata or {}).get(b"unit", b"").decode()
    return stated if 0 < len(stated) <= _LONGEST_UNIT else None


def _struct(row: Mapping[str, Any], column: str) -> Mapping[str, Any]:
    value = row.get(column)
    return value if isinstance(value, Mapping) else {}


def _measured(row: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The columns of stages, including a user's own."""
    return ((name, value) for name, value in row.items() if name not in _NOT_MEASURED and isinstance(value, Mapping))


def _verdict(row: Mapping[str, Any]) -> dict[str, Any]:
    verdict = _struct(row, "verdict")
    return {name: verdict.get(name) for name in ("status", "stage", "reason", "message", "attempts")}


def _facts(row: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    audio, rhythm, key, vocals = (_struct(row, column) for column in ("audio", "rhythm", "key", "vocals"))
    transcript, lyrics = _struct(row, "transcript"), _struct(row, "lyrics")
    duration_s = finite(audio.get("duration_s"))
    yield "Duration", None if duration_s is None else clock(duration_s)
    yield "Tempo", f"{rhythm['bpm']:.1f} BPM" if finite(rhythm.get("bpm")) else None
    yield "Meter", f"{rhythm['time_signature']} beats a bar" if rhythm.get("time_signature") else None
    yield "Key", " ".join(filter(None, (key.get("tonic"), key.get("mode"))))
    yield "Vocals", {True: "vocal", False: "instrumental"}.get(vocals.get("has_vocals"))  # type: ignore[arg-type]
    yield "Language detected", transcript.get("language")
    yield "Language declared", row.get("language")
    yield "Lyrics of", lyrics.get("song_id")
    yield "Format", _format(audio)


def clock(seconds: float) -> str:
    """A position in a song: `1:02.5`."""
    tenths = round(seconds * 10)
    return f"{tenths // 600}:{tenths % 600 // 10:02d}.{tenths % 10}"


def _format(audio: Mapping[str, Any]) -> str | None:
    rate_hz, channels = audio.get("sample_rate_hz"), audio.get("channels")
    parts = (
        audio.get("codec"),
        f"{rate_hz / 1000:g} kHz" if rate_hz else None,
        {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels") if channels else None,
    )
    return ", ".join(filter(None, parts))


def _scores(row: Mapping[str, Any], gates: Sequence[Gate]) -> list[dict[str, Any]]:
    values = {
        (column, name): finite(number)
        for column, struct in _measured(row)
        for name, number in struct.items()
        if _is_number(column, name, number)
    }
    values |= {(gate.column, gate.field): None for gate in gates if (gate.column, gate.field) not in values}
    return [
        {
            "column": column,
            "field": name,
            "value": value,
            "unit": unit(column, name),
            "gates": [_judged(gate, value) for gate in gates if (gate.column, gate.field) == (column, name)],
        }
        for (column, name), value in values.items()
    ]


def _is_number(column: str, name: str, value: Any) -> bool:
    """By the column's type if songmill defines it, so that figures that are null are still listed."""
    type = _field_type(column, name)
    if type is None:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return pa.types.is_floating(type) or pa.types.is_integer(type)


def _field_type(column: str, name: str) -> pa.DataType | None:
    known = _TYPES.get(column)
    return known.field(name).type if known and known.get_field_index(name) >= 0 else None


def _judged(gate: Gate, value: float | None) -> dict[str, Any]:
    return {"side": gate.side, "bound": gate.bound, "passed": not gate.rejects({gate.field: value})}


def _tags(tags: Mapping[str, Any]) -> list[dict[str, Any]]:
    names, scores = tags.get("names") or (), tags.get("scores") or ()
    padded = [*scores, *[None] * (len(names) - len(scores))]
    return [{"name": name, "score": finite(score)} for name, score in zip(names, padded, strict=False)]
