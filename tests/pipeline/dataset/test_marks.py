"""Marks of rows: set, changed, taken away."""

import threading
from pathlib import Path

import pytest

from pipeline.dataset.marks import read_marks, set_marks
from pipeline.errors import UsageProblem
from schemas.dataset import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "_songmill").mkdir()
    return Layout.at(tmp_path)


def test_a_mark_is_set_changed_and_taken_away(layout: Layout):
    assert read_marks(layout) == {}
    set_marks(layout, {"a": "drop", "b": "keep"}, "夜 <b>")
    assert {row: (mark.mark, mark.note) for row, mark in read_marks(layout).items()} == {
        "a": ("drop", "夜 <b>"),
        "b": ("keep", "夜 <b>"),
    }
    set_marks(layout, {"a": "keep", "b": None})
    assert {row: (mark.mark, mark.note) for row, mark in read_marks(layout).items()} == {"a": ("keep", None)}


def test_another_kind_of_mark_is_refused_and_changes_nothing(layout: Layout):
    set_marks(layout, {"a": "drop"})
    with pytest.raises(UsageProblem, match="unknown mark maybe; use one of keep, drop"):
        set_marks(layout, {"a": "maybe"})
    assert read_marks(layout)["a"].mark == "drop"


def test_marks_set_at_the_same_time_are_all_there(layout: Layout):
    threads = [threading.Thread(target=set_marks, args=[layout, {f"row {i}": "keep"}]) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_marks(layout)) == 20
