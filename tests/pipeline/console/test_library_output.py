"""What others write while Ray runs goes to the dataset's log, whichever way they write it."""

import logging
import os
import sys
from pathlib import Path

import pytest

from pipeline.console.library_output import others_logged, screen
from schemas.dataset import Layout


def test_only_our_own_lines_reach_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    layout = Layout.at(tmp_path)
    with others_logged(layout):
        os.write(1, b"core to stdout\n")
        os.write(2, b"core to stderr\n")
        print("a notice")
        print("a traceback", file=sys.stderr)
        logging.getLogger("ray").error("a logger")
        print("ours", file=screen())
    print("after", file=screen())
    assert capfd.readouterr() == ("", "ours\nafter\n")
    (log,) = (tmp_path / "_songmill/logs").iterdir()
    for text in ("core to stdout", "core to stderr", "a notice", "a traceback"):
        assert f"{text}\n" in log.read_text()


def test_a_run_that_others_were_silent_in_leaves_no_log_and_old_logs_go(tmp_path: Path):
    layout = Layout.at(tmp_path)
    (tmp_path / "_songmill/logs").mkdir(parents=True)
    for i in range(30):
        ((tmp_path / "_songmill/logs") / f"run-20260101-0000{i:02}-1.log").write_text("said")
    ((tmp_path / "_songmill/logs") / "run-20260102-000000-1.log").touch()  # of one that was killed
    with others_logged(layout):
        pass
    names = sorted(path.name for path in (tmp_path / "_songmill/logs").iterdir())
    assert names == [f"run-20260101-0000{i:02}-1.log" for i in range(11, 30)]
