"""How the input of a run differs from what the dataset knew, for the end of the run to tell."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.ingest.left_out import LeftOut

_NAMED = 10  # files of a kind


@dataclass(frozen=True)
class InputChanges:
    """Files of the input, by what became of them.

    Attributes:
        new: uris that the dataset did not know.
        moved: old and new uri of each song that was found in another place, and whose row followed it.
        missing: uris of rows whose files are away, and of the input's that nobody has ever seen.
        dropped: uris of rows that left the dataset because their files are away.
        waiting: how many rows could not be brought up to date, for their files are away.
        left_out: what of the input is no song.
    """

    new: Sequence[str] = ()
    moved: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()
    dropped: Sequence[str] = ()
    waiting: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)

    def facts(self) -> dict[str, Any]:
        """How many files of each kind, and which, up to ten; for JSON."""
        kinds = {"new": self.new, "moved": self.moved, "missing": self.missing, "dropped": self.dropped}
        counts = {kind: len(files) for kind, files in kinds.items()}
        return {**counts, "waiting": self.waiting, "files": {kind: [*files[:_NAMED]] for kind, files in kinds.items()}}

    def lines(self) -> list[str]:
        """The same for a person; no line where nothing has changed, and no names where all is new."""
        kinds: dict[str, Sequence[str]] = {
            "moved": [f"{old} -> {new}" for old, new in self.moved],
            "missing": self.missing,
            "dropped": self.dropped,
        }
        changed = any(kinds.values())
        counts = [f"{len(files)} {kind}" for kind, files in {"new": self.new, **kinds}.items() if files]
        lines = [f"input: {', '.join(counts)}"] if counts else []
        for kind, files in ({"new": self.new, **kinds} if changed else {}).items():
            lines += [f"  {kind}: {name}" for name in files[:_NAMED]]
            lines += [f"  {kind}: and {len(files) - _NAMED} more"] if len(files) > _NAMED else []
        if self.missing:
            lines.append("  complete rows whose files are missing stay as they are; --drop-missing lets them go")
        if self.waiting:
            lines.append(f"  {self.waiting} rows could not be brought up to date, for their files are missing")
        return [*lines, *filter(None, [self.left_out.sentence])]
