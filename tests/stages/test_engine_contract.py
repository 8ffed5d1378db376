"""What every engine of a stage owes those who read its column, whichever weights are in it.

The same columns and units as the stage's other engines, figures within their bounds, on silence, mono, eight seconds
and ten minutes; and a row that does not depend on the rows it is measured with.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas import columns
from stages import pcm
from stages.base import Stage
from stages.registry import ENGINES as REGISTERED
from stages.registry import stage_class
from tests.support.engines import ENGINES
from tests.support.tracks import load

# Behind a real server, and as strictly: tests/stages/test_caption_endpoint.py.
ELSEWHERE = {("caption", "endpoint")}
RATE_HZ = 44_100
BOUNDS = {"s": (0, math.inf), "Hz": (0, 22_050), "ratio": (0, 1), "probability": (0, 1), "beats/min": (20, 400)}
TOLERANCE_S = 0.05
# Ten minutes take them less than three seconds of a core; for the others they are slow.
FAST = {("speaker", "resemblyzer"), ("speaker", "songmill"), ("caption", "template"), ("text_embedding", "e5")}
FAST |= {("text_embedding", "umt5"), ("transcript", "faster-whisper"), ("transcript", "openai-whisper")}

NAMES = sorted(ENGINES)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, str]], Stage]:
    return cache(lambda name: ENGINES[name](tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def song(audio: Callable[[str, str], Path]) -> np.ndarray:
    return load(audio("demo-music", "happy_electronic_1.opus"), 8.0)


@pytest.fixture(scope="module")
def voice(audio: Callable[[str, str], Path]) -> np.ndarray:
    return load(audio("speech-clips", "en/quick_brown_fox.wav"))


def row(mix: np.ndarray, voice: np.ndarray, at_s: float = 0.0, name: str = "song") -> dict[str, Any]:
    """A row as the stages before would have left it: `voice` is heard from `at_s` on."""
    frames = mix.shape[1]
    stem = np.zeros_like(mix)
    start = round(at_s * RATE_HZ)
    stem[:, start : start + voice.shape[1]] = voice[:, : max(frames - start, 0)]
    sound, seconds = pcm.encode(mix), frames / RATE_HZ
    beats = np.arange(0.25, seconds, 0.5).tolist()
    said = {"start_s": 0.0, "end_s": min(seconds, 2.0), "text": "we sing", "words": []}
    return {
        **dict.fromkeys(("pcm", "bass_stem", "drum_stem", "other_stem"), sound),
        "vocal_stem": pcm.encode(stem),
        "row_id": name,
        "language": "en",
        "audio": {"duration_s": seconds, "sample_rate_hz": RATE_HZ, "channels": 2},
        "vocals": {"has_vocals": True, "active_ratio": 0.5},
        "transcript": {"text": "we sing", "language": "en", "segments": [said]},
        "rhythm": {"bpm": 120.0, "beats_s": beats, "downbeats_s": beats[::4], "time_signature": 4},
        "caption": {"simplified": "a song", "expanded": f"the song {name}"},
    }


def run(stage: Stage, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The columns the stage makes, row by row."""
    types = {**stage.reads, **stage.reads_if_present}
    batch = pa.table({name: pa.array([row.get(name) for row in rows], type) for name, type in types.items()})
    made = stage.run(batch)
    assert made.keys() == {stage.column, *stage.wanted}
    assert {len(values) for values in made.values()} == {len(rows)}
    return [{name: values[i] for name, values in made.items()} for i in range(len(rows))]


def figures(field: pa.Field, value: Any) -> Iterator[tuple[str, str | None, float]]:
    """All numbers in a column, each with its field's name and unit. No key may stand outside the type."""
    if value is None or isinstance(value, (str, bytes, bool)):
        return
    if pa.types.is_struct(field.type):
        assert value.keys() <= {inner.name for inner in field.type}
        for inner in field.type:
            yield from figures(inner, value.get(inner.name))
    elif pa.types.is_list(field.type):
        for item in value:
            yield from figures(field.type.value_field.with_metadata(field.metadata), item)
    elif not pa.types.is_large_binary(field.type):
        yield field.name, (field.metadata or {}).get(b"unit", b"").decode() or None, value


def check(stage: Stage, given: dict[str, Any]) -> dict[str, Any]:
    """Measure a row and hold it against the contract."""
    (made,) = run(stage, given)
    value, seconds = made[stage.column], given["audio"]["duration_s"]
    pa.array([value], stage.type)
    for name, unit, number in figures(pa.field(stage.column, stage.type), value):
        low, high = BOUNDS.get(unit or "", (-math.inf, math.inf))
        assert low <= number <= high, (name, number)  # and neither nan nor, where there is a bound, infinite
        assert not (name.endswith("_s") or name == "beats_s") or number <= seconds + TOLERANCE_S, (name, number)
    for item in value if isinstance(value, list) else [value]:
        assert item["model"]
    for name in stage.wanted:
        assert made[name] is None or len(made[name]) == len(given["pcm"]), name
    return made


def test_every_engine_of_a_stage_with_several_is_held_to_it() -> None:
    several = {(stage, engine) for stage, engines in REGISTERED.items() if len(engines) > 1 for engine in engines}
    assert several == ENGINES.keys() | ELSEWHERE


@pytest.mark.parametrize("name", NAMES, ids="/".join)
def test_columns_and_units_are_those_of_the_stages_other_engines(name: tuple[str, str]) -> None:
    stage, engine = name
    usual, this = stage_class(stage), stage_class(stage, engine)
    assert (this.name, this.column) == (usual.name, usual.column) == (stage, usual.column)
    if stage == "ssl":  # a field for every encoder, named after it
        assert {field.type for field in this.type} == {columns.SSL_STATES, pa.string()}
    else:
        assert this.type.equals(usual.type, check_metadata=True)
    assert {name: type for name, type in this.working.items() if name in usual.working} == usual.working


@pytest.mark.parametrize("name", NAMES, ids="/".join)
def test_eight_seconds_mono_and_silence(name: tuple[str, str], engine: Callable, song, voice) -> None:
    stage = engine(name)
    mono = np.broadcast_to(song.mean(0), song.shape)
    silence = np.zeros((2, 4 * RATE_HZ), np.float32)
    for mix, sung in ((song, voice), (mono, voice), (silence, silence), (song[:, :2000], voice), (song[:, :0], voice)):
        made = check(stage, row(mix, sung))
        assert made[stage.column] is not None


@pytest.mark.parametrize("name", NAMES, ids="/".join)
def test_a_row_does_not_depend_on_its_batch(name: tuple[str, str], engine: Callable, song, voice) -> None:
    stage = engine(name)
    rows = [
        row(song[:, : 2 * RATE_HZ], voice, name="a"),
        row(song[:, RATE_HZ : 5 * RATE_HZ], voice, at_s=1.0, name="b"),
    ]
    alone = [run(stage, one)[0] for one in rows]
    assert run(stage, *rows) == alone
    assert run(stage, *rows[::-1]) == alone[::-1]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow, id="/".join(n)) for n in NAMES]
)
def test_ten_minutes(name: tuple[str, str], engine: Callable, song, voice) -> None:
    """Sound in the first eight seconds and a voice at the end: times are those of the whole song."""
    stage = engine(name)
    mix = np.zeros((2, 600 * RATE_HZ), np.float32)
    mix[:, : song.shape[1]] = song
    made = check(stage, row(mix, voice, at_s=590.0))[stage.column]
    if stage.name == "transcript":
        assert [segment["start_s"] for segment in made["segments"]] == pytest.approx([590.0], abs=1.0)
    if stage.name == "sections":
        assert made["items"][-1]["end_s"] == pytest.approx(600.0, abs=0.02)
