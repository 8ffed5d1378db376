"""The result of one of the doctor's checks."""

from typing import Literal

from pydantic import BaseModel

State = Literal["ok", "warning", "problem"]


class Finding(BaseModel):
    """The result of one check.

    Attributes:
        name: what was checked.
        state: ok; warning if a run works but not as well as it could; problem if it cannot run.
        found: what was found.
        fix: what to do, if it is not ok.
    """

    name: str
    state: State
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(name=name, state="ok", found=found)


def warning(name: str, found: str, fix: str) -> Finding:
    """A run works, but not as well as it could."""
    return Finding(name=name, state="warning", found=found, fix=fix)


def problem(name: str, found: str, fix: str) -> Finding:
    """A run is not possible."""
    return Finding(name=name, state="problem", found=found, fix=fix)


def gigabytes(size: float) -> str:
    """Bytes as text in GB, such as "1.5 GB"."""
    return f"{size / 1e9:.1f} GB"
