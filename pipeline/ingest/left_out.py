"""What of an input folder is no song, and why: counted while it is listed, told at the end of a run."""

from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel

# What lies beside songs and nobody takes for one.
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
    """Files and links of an input that are no songs.

    Attributes:
        not_regular: pipes, sockets, devices, and links to them or to nothing; they are never opened.
        linked_folders: links to folders, which are not followed.
        unreadable_names: names that are not UTF-8, with their bytes escaped.
        endings: ending in lower case -> how many files have it, of those that are not decoded; "" for files without
            one. Sidecars, covers, playlists and the like are not counted, nor is anything hidden.
    """

    not_regular: list[str] = []
    linked_folders: list[str] = []
    unreadable_names: list[str] = []
    endings: Counter[str] = Counter()

    def count_ending(self, ending: str) -> None:
        """One more file with such an ending."""
        if ending not in _BESIDE:
            self.endings[ending if ending[1:].isalnum() and len(ending) <= _LONGEST_ENDING else ""] += 1

    @property
    def sentence(self) -> str:
        """All of it in one line, such as "left out: 14 with endings that are not decoded (.wma 12, .bak 2)"; or ""."""
        most = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
        kinds = (
            (len(self.not_regular), "that is no regular file", "that are no regular files", _names(self.not_regular)),
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
        told = [f"{count} {one if count == 1 else many} ({which})" for count, one, many, which in kinds if count]
        return f"left out: {', '.join(told)}" if told else ""


def _names(names: Iterable[str]) -> str:
    """The first few by name; what a terminal would take for a command is escaped."""
    shown = sorted(name if name.isprintable() else ascii(name) for name in names)
    more = [f"and {len(shown) - _NAMED} more"] if len(shown) > _NAMED else []
    return ", ".join([*shown[:_NAMED], *more])
