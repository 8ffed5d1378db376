"""Why a worker died, in words: the signal, the stage it was at and the innermost Python frames."""

import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import OutOfMemoryError, RayError

from pipeline.execution.flight_recorder import Recording

# What faulthandler calls the signals that it catches.
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
    "pipeline/execution/actor_pool.py",
)  # of the stages; their frames say nothing
_ROOTS = (str(Path(__file__).parents[2]), sysconfig.get_path("stdlib"))
_INNERMOST = 2
_LESS_MEMORY = "run fewer workers (--set resources.replicas=1) or give the machine more memory"


@dataclass(frozen=True)
class Death:
    """The end of a worker.

    Attributes:
        stage: what it was at.
        row_ids: the rows that it was at.
        cause: the signal, exit code or whatever ended it.
        frames: the innermost Python frames, such as "librosa/core/pitch.py:123 _parabolic, stages/key.py:72 process";
            may be empty.
        hint: what probably was the matter and what to try; may be empty.
        crash: what faulthandler wrote.
        with_machine: whether its machine went with it, which says little of stage and rows.
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
    """What a worker died of.

    Args:
        recording: what it has left; None where its machine is gone too.
        error: what Ray says.
        given: the first stage and the rows that it was sent, for a worker whose machine is gone.
    """
    if recording is None:
        return Death(given[0], tuple(given[1]), "a machine that was lost or out of reach", with_machine=True)
    cause, hint = _cause(recording, error)
    frames = _described(_frames(recording.crash))
    return Death(recording.stage, recording.row_ids, cause, frames, hint, recording.crash)


def _cause(recording: Recording, error: RayError) -> tuple[str, str]:
    if recording.exit_code is not None:
        return f"exit with code {recording.exit_code}", ""
    if found := re.match(r"Fatal Python error: (.*)", recording.crash):
        return _SIGNALS.get(found[1], found[1]), ""
    if isinstance(error, OutOfMemoryError):
        return "ended by Ray", f"for its machine was nearly out of memory: {_LESS_MEMORY}"
    return "SIGKILL", f"probably out of memory: {_LESS_MEMORY}"  # the one signal that no process can leave word of


def _frames(crash: str) -> list[tuple[str, int, str]]:
    """File, line and function, innermost first, down to what called the stage: of the thread that crashed, or where
    that is a native library's, without frames, of the one that was at work.
    """
    threads = _THREAD.split(crash)
    crashed = [_FRAME.findall(thread) for thread in threads if thread.startswith(("Current thread", "Stack"))]
    at_work = [frames for frames in map(_FRAME.findall, threads) if any(f.endswith(_CALLERS) for f, _, _ in frames)]
    frames = next(filter(None, [*crashed, *at_work]), [])
    called = next((i for i, (file, _, _) in enumerate(frames) if file.endswith(_CALLERS)), len(frames))
    return [(file, int(line), function) for file, line, function in frames[:called]]


def _described(frames: list[tuple[str, int, str]]) -> str:
    """The innermost ones, and the outermost that is not the base class's: the stage itself."""
    own = [
        frame for frame in frames if not frame[0].endswith(("stages/base.py", "pipeline/execution/flight_recorder.py"))
    ]
    told = own[:_INNERMOST] + own[_INNERMOST:][-1:]
    return ", ".join(f"{_shortened(file)}:{line} {function}" for file, line, function in told)


def _shortened(file: str) -> str:
    """Relative to site-packages, the standard library or the project, on whichever machine it lies."""
    for folder in ("/site-packages/", "/dist-packages/"):
        if folder in file:
            return file.rpartition(folder)[2]
    for root in _ROOTS:
        if file.startswith(f"{root}/"):
            return file[len(root) + 1 :]
    return "/".join(Path(file).parts[-2:])
