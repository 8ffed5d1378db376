"""What the doctor says of one thing it has looked at."""

from typing import Literal

from pydantic import BaseModel

State = Literal["ok", "warning", "problem"]


class Finding(BaseModel):
    """One thing.

    Attributes:
        name: what was looked at.
        state: ok; warning, where a run works but worse than it could; problem, where it cannot.
        found: what is there.
        fix: what mends it, where it is not ok.
    """

    name: str
    state: State
    found: str
    fix: str = ""


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name=name, state="ok", found=found)


def warning(name: str, found: str, fix: str) -> Finding:
    """It runs, but worse than it could."""
    return Finding(name=name, state="warning", found=found, fix=fix)


def problem(name: str, found: str, fix: str) -> Finding:
    """It cannot run."""
    return Finding(name=name, state="problem", found=found, fix=fix)


def gigabytes(size: float) -> str:
    """Bytes in GB, as people read them."""
    return f"{size / 1e9:.1f} GB"
