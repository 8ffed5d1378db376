"""`--version`, `-v` and `--log-file`: options before the command, obeyed by every command."""

import logging
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from pipeline.console.logs import logged
from tests.support.audio import tone, write
from tests.support.command import asked, songmill

_OURS = logging.getLogger("songmill.test")


def test_the_version():
    assert asked("--version").strip() == f"songmill {version('songmill')}"


@pytest.mark.ray
def test_a_run_with_v_says_what_is_done_and_the_file_has_every_detail(tmp_path: Path):
    songs, log = tmp_path / "songs", tmp_path / "run.log"
    songs.mkdir()
    write(songs / "tone.flac", tone(440, 6))
    command = ("curate", songs, "--out", tmp_path / "dataset", "--stages", "decode", "--quiet")
    out, err = songmill("-v", "--log-file", log, *command)
    assert "(1 worked on, 0 unchanged)" in out
    for line in ("INFO songmill.curate: 1 rows to scan", "INFO songmill.ledger: unit 0 is committed: 1 rows, shards/"):
        assert line in err
        assert line in log.read_text()
    assert "DEBUG" not in err
    assert "DEBUG songmill.curate: stage decode, fingerprint" in log.read_text()
    out, err = songmill(*command)
    assert (out.split("(")[1].strip(), err) == ("0 worked on, 1 unchanged)", "")  # nothing is said unasked


def test_a_refusal_is_in_the_file_and_on_stderr_once(tmp_path: Path):
    log = tmp_path / "run.log"
    said = asked("-v", "--log-file", log, "inspect", tmp_path / "nothing", code=1)
    assert said.count("is no songmill dataset") == 1
    assert f"DEBUG songmill.cli: exit code 1: {tmp_path / 'nothing'} is no songmill dataset" in log.read_text()
    before = log.read_text()
    asked("--log-file", log, "inspect", tmp_path / "nothing", code=1)
    assert log.read_text().startswith(before)
    assert len(log.read_text()) > len(before)


def test_a_file_that_cannot_be_written_is_a_usage_problem(tmp_path: Path):
    assert f"--log-file {tmp_path}/no/run.log" in asked("--log-file", tmp_path / "no/run.log", "plan", code=2)


class TestLogged:
    def test_levels_by_the_number_of_v(self, capsys: pytest.CaptureFixture[str]):
        for verbose, heard in ((1, "warned told"), (2, "warned told detailed"), (9, "warned told detailed")):
            with logged(verbose, None):
                _OURS.warning("warned")
                _OURS.info("told")
                _OURS.debug("detailed")
            lines = capsys.readouterr().err.splitlines()[1:]  # the first names the command
            assert [line.split(": ")[1] for line in lines] == heard.split()

    def test_a_file_alone_leaves_stderr_with_warnings(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        with logged(0, tmp_path / "run.log"):
            _OURS.warning("warned")
            _OURS.debug("detailed")
        assert capsys.readouterr().err.rstrip().endswith("WARNING songmill.test: warned")
        assert "DEBUG songmill.test: detailed" in (tmp_path / "run.log").read_text()

    def test_a_command_inside_another_says_nothing_twice_and_ends_nothing(self, capsys: pytest.CaptureFixture[str]):
        with logged(1, None):
            with logged(0, None):
                _OURS.info("inside")
            _OURS.info("outside")
        _OURS.info("afterwards")
        err = capsys.readouterr().err
        assert (err.count("inside"), err.count("outside"), err.count("afterwards")) == (1, 1, 0)

    def test_what_nobody_foresaw_is_in_the_file_with_its_traceback(self, tmp_path: Path):
        log = tmp_path / "run.log"
        with pytest.raises(ZeroDivisionError), logged(0, log):
            _ = 1 / 0
        assert "ZeroDivisionError" in log.read_text()
        with pytest.raises(typer.Exit), logged(0, tmp_path / "other.log"):
            raise typer.Exit(1)
        assert "Traceback" not in (tmp_path / "other.log").read_text()
