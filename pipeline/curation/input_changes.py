"""How the input of a run differs from what the dataset had seen, reported at the end of the run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.ingest.left_out import LeftOut

_NAMED = 10  # files listed by name, of each kind


@dataclass(frozen=True)
class InputChanges:
    """Changes in the input files.

    Attributes:
        new: uris that were not in the dataset.
        moved: old and new uri of each moved file whose row was renamed accordingly.
        missing: uris of rows whose files are missing, and of files that the input lists but that were never found.
        dropped: uris of rows that were removed from the dataset because their files are missing.
        waiting: number of rows that could not be brought up to date because their files are missing.
        left_out: files of the input that are not songs.
    """

    new: Sequence[str] = ()
    moved: Sequence[tuple[str, str]] = ()
    missing: Sequence[str] = ()
    dropped: Sequence[str] = ()
    waiting: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)

    def facts(self) -> dict[str, Any]:
        """Number of files of each kind, and the names of up to ten of each, for JSON output."""
        kinds = {"new": self.new, "moved": self.moved, "missing": self.missing, "dropped": self.dropped}
        counts = {kind: len(files) for kind, files in kinds.items()}
        return {**counts, "waiting": self.waiting, "files": {kind: [*files[:_NAMED]] for kind, files in kinds.items()}}

    def lines(self) -> list[str]:
        """The changes as lines of text: none if nothing changed, and no file names if all files are new."""
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
            lines.append("  complete rows whose files are missing are kept; --drop-missing removes them")
        if self.waiting:
            lines.append(f"  {self.waiting} rows could not be brought up to date because their files are missing")
        return [*lines, *filter(None, [self.left_out.sentence])]
