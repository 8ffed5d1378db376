"""`songmill inspect`: every figure of the screen and of its JSON, on rows whose figures are known."""

import io
import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.dataset.ledger import Ledger
from pipeline.dataset.marks import set_marks
from pipeline.dataset.stats import Stats, collect_stats
from pipeline.dataset.stats_cache import _Snapshot, current_stats, renew_stats
from pipeline.view.terminal import show_stats, sparkline
from schemas.commits import read_records
from schemas.dataset import Layout
from tests.support.command import asked, inspected, songmill
from tests.support.rows import row, write_rows

SUNG = {"has_vocals": True, "active_ratio": 0.5, "model": "spleeter"}


def told(stats: Stats, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    show_stats(console, "songs", stats)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return write_rows(
        tmp_path / "songs",
        [
            row(0, vocals=SUNG, transcript={"text": "la", "language": "en", "model": "w"}, rhythm={"bpm": 90.0}),
            row(1, vocals=SUNG, license="MIT", rhythm={"bpm": 150.0}, tags={"names": ["rock", "pop", "loud", "4th"]}),
            row(2, license=None, flags=["bpm", "key"], audio={"duration_s": 7200.0, "codec": "mp3"}, rhythm=None),
            row(3, "filtered", "quality", "min_bandwidth_hz"),
            row(4, "filtered", "quality", "min_bandwidth_hz", audio={"duration_s": 1800.0}),
            row(5, "failed", "decode", "NotAudio", audio=None),
        ],
    )


def test_rows_hours_and_verdicts_add_up(layout: Layout):
    stats = inspected(layout.url)
    assert stats["rows"] == {"kept": 3, "filtered": 2, "failed": 1, "total": 6}
    assert stats["hours"] == {"kept": 4.0, "filtered": 1.5, "failed": 0.0}
    assert [(v["reason"], v["rows"], v["hours"]) for v in stats["verdicts"]] == [
        ("min_bandwidth_hz", 2, 1.5),
        ("NotAudio", 1, 0.0),
    ]
    assert stats["shards"] == 1
    assert stats["sizes"].keys() == {"shards", "quarantine"}


def test_values_are_counted_with_their_hours(layout: Layout):
    stats = inspected(layout.url)
    assert stats["counts"]["license"] == {"CC-BY-4.0": 1, "MIT": 1, "unknown": 1}
    assert stats["hours_of"]["license"] == {"CC-BY-4.0": 1.0, "MIT": 1.0, "unknown": 2.0}
    assert stats["counts"]["tags.names"] == {"rock": 3, "loud": 1, "pop": 1}
    assert stats["counts"]["flags"] == {"bpm": 1, "key": 1}
    assert stats["counts"]["transcript.language"] == {"en": 1}
    assert stats["vocal_share"] == 0.5
    assert stats["nulls"]["transcript"] == 2


def test_histograms_cover_every_row_and_fences_are_borders(tmp_path: Path):
    bpms = [60 + 100 * math.sqrt(i / 200) for i in range(200)] + [900.0, float("nan")]
    layout = write_rows(tmp_path, [row(i, rhythm={"bpm": bpm, "model": "x"}) for i, bpm in enumerate(bpms)])
    (bpm,) = [d for d in inspected(layout.url)["distributions"] if d["column"] == "rhythm.bpm"]
    assert bpm["count"] == sum(bpm["counts"]) == 201
    assert (bpm["edges"][0], bpm["edges"][-1]) == (bpm["minimum"], bpm["maximum"]) == (60.0, 900.0)
    assert len(bpm["edges"]) == len(bpm["counts"]) + 1
    assert bpm["edges"] == sorted(bpm["edges"])
    for low, high, count in list(zip(bpm["edges"], bpm["edges"][1:], bpm["counts"], strict=False))[1:-1]:
        assert count == sum(low <= value < high for value in bpms)


def test_a_figure_that_is_the_same_everywhere_has_one_bin(layout: Layout):
    (loudness,) = [d for d in inspected(layout.url)["distributions"] if d["column"] == "quality.loudness_lufs"]
    assert (loudness["edges"], loudness["counts"]) == ([-14.0, -14.0], [3])


def test_pending_rows_and_marks_show_only_where_there_are_any(layout: Layout, tmp_path: Path):
    said = told(collect_stats(layout))
    assert "pending" not in said
    assert "marked" not in said
    waiting = write_rows(tmp_path / "waiting", [row(0), row(1, "pending")])
    set_marks(waiting, {"a": "drop", "b": "drop", "c": "keep"})
    stats = collect_stats(waiting)
    assert stats.rows == {"kept": 1, "filtered": 0, "failed": 0, "pending": 1, "total": 2}
    assert stats.verdicts == []
    assert stats.marks == {"drop": 2, "keep": 1}
    said = " ".join(told(stats).split())
    assert "2 rows = 1 kept + 0 filtered + 0 failed + 1 pending" in said
    assert "marked by people: 2 drop and 1 keep" in said


def test_one_screen(tmp_path: Path):
    rows = [row(i, license=f"License {i}", source="s" * 200, title="[red]") for i in range(60)]
    rows += [row(100 + i, "failed", "decode", f"Reason{i:02d}[/red]") for i in range(30)]
    lines = told(collect_stats(write_rows(tmp_path, rows))).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    assert "Reason00[/red]" in "".join(lines)
    assert any(line.startswith("22 more") for line in lines)


def test_the_real_command_prints_figures_and_sparklines_to_stdout(layout: Layout):
    out, err = songmill("inspect", layout.url)
    assert not err
    assert "6 rows = 3 kept + 2 filtered + 1 failed; 4.000 h kept of 5.500 h; 1 shards" in out
    assert "vocal share          50.0% of hours" in out
    assert "rhythm.bpm" in out
    assert "█" in out


def test_comparing_excludes_other_outputs(layout: Layout):
    told = asked("inspect", layout.url, "--compare", layout.url, "--sql", "select 1", code=2)
    assert "give only one of --sql, --html and --compare" in told


def test_an_empty_dataset_has_a_screen(tmp_path: Path):
    layout = Layout.at(tmp_path)
    with layout.store.writing():
        Ledger(layout).open()
    (tmp_path / "_songmill/plan.json").write_text("{}")
    assert json.loads(asked("inspect", tmp_path, "--json"))["rows"]["total"] == 0
    assert "0 rows = 0 kept" in asked("inspect", tmp_path)


def test_the_figures_of_the_last_run_stand_until_something_is_committed_or_scanned(layout: Layout):
    state = Path(layout.url) / "_songmill"
    stats = renew_stats(layout)
    told = _Snapshot.model_validate_json((state / "stats.json").read_bytes())
    (state / "stats.json").write_text(told.model_copy(update={"shards": 77}).model_dump_json())
    assert current_stats(layout).shards == 77  # it does not count
    set_marks(layout, {"a": "drop"})
    assert current_stats(layout).marks == {"drop": 1}
    (commit,) = Ledger(layout).read().commits.values()
    (state / "commits/000000.json").write_text(commit.model_copy(update={"timings": {}}).model_dump_json())
    assert current_stats(layout).shards == 1
    renew_stats(layout)
    assert current_stats(layout).stages == []
    (state / "scan").mkdir()
    pq.write_table(pa.table({"timing": [[{"stage": "decode", "seconds": 2.0}]]}), state / "scan/part-000000.parquet")
    assert [stage.stage for stage in current_stats(layout).stages] == ["scan: decode"]
    (state / "stats.json").write_text('{"of": "another release"}')
    assert current_stats(layout).rows == stats.rows


def test_records_without_rows_are_those_that_count(layout: Layout):
    (commit,) = Ledger(layout).read().commits.values()
    successor = commit.model_copy(update={"unit": 7, "supersedes": 0})
    (Path(layout.url) / "_songmill/commits/000007.json").write_text(successor.model_dump_json())
    assert [record.unit for record in read_records(layout)] == list(Ledger(layout).read().commits) == [7]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**9), max_size=40))
def test_a_sparkline_has_a_bar_for_every_bin_that_has_rows(counts: list[int]):
    bars = sparkline(counts)
    assert len(bars) == len(counts)
    assert [bar == " " for bar in bars] == [count == 0 for count in counts]
    assert all(bars[i] <= bars[k] for i in range(len(counts)) for k in range(len(counts)) if counts[i] <= counts[k])
