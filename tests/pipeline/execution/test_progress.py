"""What the display of a run says, and when it says nothing."""

import io
import time

import pytest

from pipeline.execution import progress
from pipeline.execution.operator import Report
from pipeline.execution.progress import shown
from pipeline.execution.run_counts import AtWork, RunCounts


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is said on a screen that is a file; it is looked at often."""
    screen = io.StringIO()
    monkeypatch.setattr(progress, "screen", lambda: screen)
    monkeypatch.setattr(progress._Lines, "interval_s", 0.01)
    return screen


def wait_for(said: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in said.getvalue():
        assert time.monotonic() < deadline, said.getvalue()
        time.sleep(0.01)


def test_a_line_says_what_is_at_work_and_is_not_repeated(said):
    counts = RunCounts()
    counts.look = lambda: [AtWork("key", 12.2, "songs/a.mp3"), AtWork("decode", 3), AtWork("key", 1)]
    with shown("curate", 4, counts):
        wait_for(said, "\n")
        time.sleep(0.2)
        counts.finished(Report({"key": 1}, {"kept": 1}, 180.0))
        wait_for(said, "1/4 rows")
        counts.look = list
    first, second, *rest = said.getvalue().splitlines()
    assert first == "curate: 0/4 rows, 0 kept 0 filtered 0 failed, 0.0 audio hours per hour, " + (
        "running: decode key×2, longest 12 s in key"
    )
    assert second.startswith("curate: 1/4 rows, 1 kept 0 filtered 0 failed, ")
    assert len(rest) <= 1  # that nothing is at work any more


def test_a_song_that_takes_long_is_named_without_what_would_steer_a_terminal(said):
    counts = RunCounts()
    counts.look = lambda: [AtWork("key", 31.0, "songs/\x1b]0;owned\x07\u202eslow.mp3")]
    with shown("curate", 4, counts):
        wait_for(said, "longest 31 s in key (]0;ownedslow.mp3)")
        counts.look = lambda: [AtWork("key", 59.0, "songs/\x1b]0;owned\x07\u202eslow.mp3")]
        time.sleep(0.2)
        assert said.getvalue().count("\n") == 1
        counts.look = lambda: [AtWork("key", 125.0, "songs/\x1b]0;owned\x07\u202eslow.mp3")]
        wait_for(said, "longest 2 min in key")
    assert not {"\x1b", "\x07", "\u202e"} & {*said.getvalue()}


def test_nothing_is_said_if_nobody_wants_to_hear_it(said):
    with shown("curate", 4, RunCounts(), enabled=False):
        time.sleep(0.05)
    assert said.getvalue() == ""
