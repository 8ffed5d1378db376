"""Explain why a worker died: the signal, the stage it was running and the innermost Python frames."""

import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError

from pipeline.execution.flight_recorder import Recording

# faulthandler's names of signals.
_SIGNALS = {
    "Segmentation fault": "SIGSEGV",
    "Bus error": "SIGBUS",
    "Aborted": "SIGABRT",
    "Illegal instruction": "SIGILL",
    "Floating-point exception": "SIGFPE",
    "Floating point exception": "SIGFPE",
}
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_THREAD = re.compile(r"^(?=(?:Current thread|Thread|Stack) )", re.MULTILINE)
_CALLERS = (
    "pipeline/execution/operator.py",
    "pipeline/execution/worker.py",
)  # they call the stages; their frames are not informative
_ROOTS = (str(Path(__file__).parents[2]), sysconfig.get_path("stdlib"))
_INNERMOST = 2
_LESS_MEMORY = "run fewer workers (--set resources.workers=1) or give the machine more memory"


@dataclass(frozen=True)
class Death:
    """The death of a worker.

    Attributes:
        stage: the stage it was running.
        row_ids: ids of the rows it was processing.
        cause: the signal, the exit code, or another cause.
        frames: the innermost Python frames, such as "librosa/core/pitch.py:123 _parabolic, stages/key.py:72 process";
            may be empty.
        hint: the probable reason and what to try; may be empty.
        crash: faulthandler's output.
        with_machine: whether its whole machine was lost, so that stage and rows are probably not to blame.
    """

    stage: str
    row_ids: tuple[str, ...]
    cause: str
    frames: str = ""
    hint: str = ""
    crash: str = ""
    with_machine: bool = False

    def __str__(self) -> str:
        frames = f" ({self.frames})" if self.frames else ""
        hint = f", {self.hint}" if self.hint else ""
        return f"{self.cause} in {self.stage}{frames}{hint}"


def explain(recording: Recording | None, error: RayError, given: tuple[str, Sequence[str]]) -> Death:
    """Find the cause of a worker's death.

    Args:
        recording: its flight recording; None if its machine is gone too. One that says of no crash proves no death
            where the worker was only out of reach.
        error: the error that Ray raised.
        given: first stage and row ids of the block it was sent, used if its machine is gone or was out of reach.
    """
    if recording is None or (isinstance(error, ActorUnavailableError) and not _ended_by_itself(recording)):
        return Death(given[0], tuple(given[1]), "a machine that was lost or unreachable", with_machine=True)
    cause, hint = _cause(recording, error)
    frames = _described(_frames(recording.crash))
    return Death(recording.stage, recording.row_ids, cause, frames, hint, recording.crash)


def _ended_by_itself(recording: Recording) -> bool:
    return bool(recording.crash) or recording.exit_code is not None


def _cause(recording: Recording, error: RayError) -> tuple[str, str]:
    if recording.exit_code is not None:
        return f"exit with code {recording.exit_code}", ""
    if found := re.match(r"Fatal Python error: (.*)", recording.crash):
        return _SIGNALS.get(found[1], found[1]), ""
    if isinstance(error, OutOfMemoryError):
        return "killed by Ray", f"because its machine was nearly out of memory: {_LESS_MEMORY}"
    return "SIGKILL", f"probably out of memory: {_LESS_MEMORY}"  # no other signal goes unrecorded


def _frames(crash: str) -> list[tuple[str, int, str]]:
    """Stack frames as (file, line, function), innermost first, up to the caller of the stage.

    They are those of the thread that crashed; if it is a native library's thread, without Python frames, those of the
    thread that was running the stage.
    """
    threads = _THREAD.split(crash)
    crashed = [_FRAME.findall(thread) for thread in threads if thread.startswith(("Current thread", "Stack"))]
    running = [frames for frames in map(_FRAME.findall, threads) if any(f.endswith(_CALLERS) for f, _, _ in frames)]
    frames = next(filter(None, [*crashed, *running]), [])
    called = next((i for i, (file, _, _) in enumerate(frames) if file.endswith(_CALLERS)), len(frames))
    return [(file, int(line), function) for file, line, function in frames[:called]]


def _described(frames: list[tuple[str, int, str]]) -> str:
    """The innermost frames and the outermost one that is not the stage base class's, which is in the stage itself."""
    own = [
        frame for frame in frames if not frame[0].endswith(("stages/base.py", "pipeline/execution/flight_recorder.py"))
    ]
    chosen = own[:_INNERMOST] + own[_INNERMOST:][-1:]
    return ", ".join(f"{_shortened(file)}:{line} {function}" for file, line, function in chosen)


def _shortened(file: str) -> str:
    """The path relative to site-packages, the standard library or the project; the file may be on another machine."""
    for folder in ("/site-packages/", "/dist-packages/"):
        if folder in file:
            return file.rpartition(folder)[2]
    for root in _ROOTS:
        if file.startswith(f"{root}/"):
            return file[len(root) + 1 :]
    return "/".join(Path(file).parts[-2:])
