"""A row as pages show it: its view, its timeline, its waveform, and markup that data cannot break out of."""

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages.row import row_view
from pipeline.pages.sound import Sound
from pipeline.pages.templates import environment, figure
from pipeline.pages.timeline import timeline, within
from pipeline.pages.waveform import NoWaveform, peaks
from pipeline.planning.gates import Gate
from schemas import columns
from tests.support.audio import silence, write
from tests.support.tracks import load

GATES = (
    Gate("audio", "duration_s", "min", 5.0),
    Gate("audio", "duration_s", "max", 600.0),
    Gate("quality", "bandwidth_hz", "min", 15_000.0),
    Gate("events", "live", "max", 0.5),
)
HOSTILE = """</script><script>document.title = 'broken'</script>"><img src=x onerror="document.title='broken'"> مرحبا"""
SONG: dict[str, Any] = {
    "row_id": "r1",
    "title": "A song",
    "uri": "a.flac",
    "audio": {"duration_s": 62.5, "sample_rate_hz": 44_100, "channels": 2, "codec": "flac", "model": "pyav"},
    "quality": {"bandwidth_hz": 12_000.0, "loudness_lufs": float("-inf"), "clipped_ratio": None, "model": "q@r1"},
    "events": None,
    "steadiness": {"deviation_s": 0.01, "steady": True, "model": "mine"},  # a user's own stage
    "rhythm": {"bpm": 120.0, "beats_s": [0.5 * i for i in range(120)], "downbeats_s": [2.0 * i for i in range(30)]},
    "sections": {"items": [{"start_s": 0.0, "end_s": 20.0, "label": "verse"}, {"start_s": 20.0, "end_s": 62.5}]},
    "lyrics": {
        "song_id": "a",
        "lines": [
            {
                "start_s": 9.0,
                "end_s": 12.0,
                "text": "hello there",
                "verdict": "canonical",
                "words": [
                    {"start_s": 9.0, "end_s": 9.5, "text": "hello"},
                    {"start_s": 9.6, "end_s": 12.0, "text": "there"},
                ],
            },
            {"start_s": None, "end_s": None, "text": "never sung", "verdict": "missing", "words": None},
        ],
    },
    "caption": {"simplified": "A song.", "expanded": None},
    "tags": {"names": ["rock", "pop"], "scores": [0.9, float("nan")]},
    "flags": ["odd"],
    "verdict": {"status": "filtered", "stage": "quality", "reason": "min_bandwidth_hz", "message": "12000 is below"},
}


def score(view: dict[str, Any], column: str, field: str) -> dict[str, Any]:
    [found] = [one for one in view["scores"] if (one["column"], one["field"]) == (column, field)]
    return found


class TestView:
    def test_every_number_has_its_unit_and_every_threshold_its_verdict(self):
        view = row_view(SONG, GATES)
        assert score(view, "quality", "bandwidth_hz") == {
            "column": "quality",
            "field": "bandwidth_hz",
            "value": 12_000.0,
            "unit": "Hz",
            "gates": [{"side": "min", "bound": 15_000.0, "passed": False}],
        }
        assert [(g["side"], g["passed"]) for g in score(view, "audio", "duration_s")["gates"]] == [
            ("min", True),
            ("max", True),
        ]
        live = score(view, "events", "live")  # nothing was measured: it passes
        assert (live["value"], live["unit"], live["gates"][0]["passed"]) == (None, "probability", True)
        assert score(view, "steadiness", "deviation_s")["value"] == 0.01
        named = {(one["column"], one["field"]) for one in view["scores"]}
        assert {("quality", "clipped_ratio"), ("audio", "channels"), ("rhythm", "bpm")} <= named
        assert not {("steadiness", "steady"), ("audio", "codec")} & named

    def test_what_json_cannot_hold_is_none(self):
        view = row_view(SONG, GATES)
        json.dumps(view, allow_nan=False)
        assert score(view, "quality", "loudness_lufs")["value"] is None
        assert view["tags"] == [{"name": "rock", "score": 0.9}, {"name": "pop", "score": None}]
        assert view["models"] == {"audio": "pyav", "quality": "q@r1", "steadiness": "mine"}

    @given(st.sets(st.sampled_from(sorted(SONG))), st.sets(st.sampled_from(sorted(SONG))))
    def test_any_column_may_be_absent_or_null(self, absent: set[str], null: set[str]):
        row = {name: None if name in null else value for name, value in SONG.items() if name not in absent}
        view = row_view(row, GATES)
        json.dumps(view, allow_nan=False)
        assert {(g.column, g.field) for g in GATES} <= {(s["column"], s["field"]) for s in view["scores"]}
        card(row, Sound(None, remark="nothing"))
        card(row, Sound("data:,", 1.0, 10.0, [0.5, 1.0]))

    def test_given_lyrics_stand_in_for_heard_ones(self):
        row = {"given_lyrics": "[00:01.00]one\n[00:03.50]two", "audio": {"duration_s": 9.0}}
        lines = row_view(row, ())["timeline"]["lines"]
        assert [(line["start_s"], line["end_s"], line["text"], line["verdict"]) for line in lines] == [
            (1.0, 3.5, "one", "given"),
            (3.5, 3.5, "two", "given"),
        ]

    def test_units_stand_for_every_column_of_numbers(self):
        for name in ("aesthetics", "events", "vocals", "key", "dedup"):
            type = getattr(columns, name.upper())
            view = row_view({name: dict.fromkeys(field.name for field in type)}, ())
            numbers = [f.name for f in type if str(f.type) in ("float", "double", "int32")]
            assert [one["field"] for one in view["scores"]] == numbers


class TestTimeline:
    def test_an_excerpt_keeps_what_it_lets_hear(self):
        cut = within(timeline(SONG), 10.0, 15.0)
        assert (cut["beats_s"][0], cut["beats_s"][-1], len(cut["downbeats_s"])) == (10.0, 24.5, 8)
        assert [(s["start_s"], s["end_s"], s["label"]) for s in cut["sections"]] == [(10, 20, "verse"), (20, 25, "?")]
        assert [line["start_s"] for line in cut["lines"]] == [9.0, None]
        after = within(timeline(SONG), 30.0, 15.0)["lines"]
        assert [(line["text"], line["start_s"], line["words"]) for line in after] == [
            ("hello there", None, []),
            ("never sung", None, []),
        ]

    @given(st.floats(0, 60), st.floats(0.1, 60))
    def test_nothing_is_placed_outside(self, start_s: float, length_s: float):
        cut = within(timeline(SONG), start_s, length_s)
        assert all(start_s <= time < start_s + length_s for time in cut["beats_s"] + cut["downbeats_s"])
        assert all(start_s <= s["start_s"] < s["end_s"] <= start_s + length_s for s in cut["sections"])
        assert len(cut["lines"]) == 2


class TestWaveform:
    def test_bars_follow_a_real_song(self, audio: Callable[[str, str], Path]):
        song = audio("demo-music", "calm_acoustic_1.opus")
        with song.open("rb") as file:
            found = np.array(peaks(file, 200))
        assert (len(found), found.max()) == (200, 1.0)
        parts = np.array_split(np.abs(load(song)).max(0), 200)
        assert np.corrcoef(found, [part.max() for part in parts])[0, 1] > 0.95

    def test_silence_has_none_and_text_is_no_audio(self, tmp_path: Path):
        quiet = write(tmp_path / "quiet.wav", silence(1))
        assert set(peaks(io.BytesIO(quiet.read_bytes()))) == {0.0}
        with pytest.raises(NoWaveform):
            peaks(io.BytesIO(b"no audio at all"))


class Names(HTMLParser):
    """Elements and their attributes, and the text of scripts."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def card(row: dict[str, Any], sound: Sound) -> str:
    template = environment().from_string('{% from "row.html" import row_card %}{{ row_card(row, sound) }}')
    return template.render(row=row_view(row, GATES), sound=sound)


class TestCard:
    def test_hostile_text_stays_text_everywhere(self):
        def hostile(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: hostile(inner) for name, inner in value.items()}
            if isinstance(value, list):
                return [hostile(inner) for inner in value]
            return HOSTILE if isinstance(value, str) else value

        sound = Sound(HOSTILE, 0.0, 62.5, [1.0], peaks_src=HOSTILE, remark=HOSTILE)
        tags = Names(card(hostile(SONG), sound)).tags
        assert [attributes for tag, attributes in tags if tag == "script"] == [
            {"type": "application/json", "class": "sound"}
        ]
        assert not {"img", "iframe", "object"} & {tag for tag, _ in tags}
        assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]

    def test_pass_and_fail_are_words_not_only_colours(self):
        found = card(SONG, Sound(None))
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found))
        assert re.search(r"quality\. bandwidth_hz 12,000 Hz ≥ 15,000 ✕ fails", text)
        assert "duration_s 62.5 s ≥ 5 ✓ passes" in text
        assert "live not measured ≤ 0.5" in text
        assert "filtered · quality · min_bandwidth_hz" in text

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_figures_are_near_the_number(self, value: float):
        assert float(figure(value).replace(",", "")) == pytest.approx(value, rel=1e-3, abs=0)
