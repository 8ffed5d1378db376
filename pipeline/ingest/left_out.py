"""Files of an input folder that are not songs, and why: counted during listing, reported at the end of a run."""

from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel

# Files that are common next to songs and need no mention.
_SIDECARS = frozenset([".txt", ".lrc", ".json"])
_MANIFESTS = frozenset([".jsonl", ".csv", ".parquet"])
_PICTURES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".svg"])
_PLAYLISTS = frozenset([".m3u", ".m3u8", ".pls", ".xspf", ".cue"])
_NOTES = frozenset([".nfo", ".log", ".md", ".pdf", ".html", ".htm", ".xml", ".yaml", ".yml", ".url", ".ini", ".db"])
_CHECKSUMS = frozenset([".sfv", ".md5", ".ffp"])
_BESIDE = _SIDECARS | _MANIFESTS | _PICTURES | _PLAYLISTS | _NOTES | _CHECKSUMS
_LONGEST_ENDING = 10  # "1.5 - a live take" has none
_NAMED = 5


class LeftOut(BaseModel):
    """Files and links of an input that are not songs.

    Attributes:
        not_regular: pipes, sockets, devices, links to them, and dangling links; none of them is opened.
        linked_folders: links to folders, which are not followed.
        unreadable_names: names that are not UTF-8, with their bytes escaped.
        endings: lower-case suffix -> number of files with it, for suffixes that are not decoded; "" for files without
            one. Sidecars, covers, playlists and the like are not counted, nor are hidden files.
    """

    not_regular: list[str] = []
    linked_folders: list[str] = []
    unreadable_names: list[str] = []
    endings: Counter[str] = Counter()

    def count_ending(self, ending: str) -> None:
        """Count one more file with this ending."""
        if ending not in _BESIDE:
            self.endings[ending if ending[1:].isalnum() and len(ending) <= _LONGEST_ENDING else ""] += 1

    @property
    def sentence(self) -> str:
        """A summary such as "left out: 14 with endings that are not decoded (.wma 12, .bak 2)"; "" if empty."""
        most = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
        kinds = (
            (
                len(self.not_regular),
                "that is not a regular file",
                "that are not regular files",
                _names(self.not_regular),
            ),
            (len(self.linked_folders), "linked folder", "linked folders", _names(self.linked_folders)),
            (
                len(self.unreadable_names),
                "whose name is not UTF-8",
                "whose names are not UTF-8",
                _names(self.unreadable_names),
            ),
            (
                self.endings.total(),
                "with an ending that is not decoded",
                "with endings that are not decoded",
                ", ".join(f"{ending or 'no ending'} {count}" for ending, count in most),
            ),
        )
        parts = [f"{count} {one if count == 1 else many} ({which})" for count, one, many, which in kinds if count]
        return f"left out: {', '.join(parts)}" if parts else ""


def _names(names: Iterable[str]) -> str:
    """The first few in alphabetical order; non-printable names are escaped."""
    shown = sorted(name if name.isprintable() else ascii(name) for name in names)
    more = [f"and {len(shown) - _NAMED} more"] if len(shown) > _NAMED else []
    return ", ".join([*shown[:_NAMED], *more])
