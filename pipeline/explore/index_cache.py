"""Where indices stay between starts: in the user's cache, a folder a dataset, one file of its newest state.

An index is named after the files whose rows it holds and after its own bytes, so that neither one of another state nor
a damaged one is ever opened. Whoever makes one holds a lock and renames it into place when it is whole. It is not
written to again: who has an older one open keeps it, though it is removed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import duckdb
import platformdirs
from filelock import FileLock

from pipeline.errors import DataProblem
from pipeline.explore.index import Changed, Index
from pipeline.explore.index_build import REVISION, Progress, renew
from schemas.commits import committed_files
from schemas.dataset import Layout
from schemas.files import file_digest

_DATASET = "dataset"  # a link to it, so that the index goes when the dataset has
_REVISED = f"r{REVISION}-"
_DIGITS = 16  # of a file's digest in its name


def index_cache() -> Path:
    """The user's folder of indices."""
    return platformdirs.user_cache_path("songmill") / "explore"


class IndexCache:
    """The indices of one dataset.

    Attributes:
        layout: the dataset, by its absolute path.
        folder: where they lie.
    """

    def __init__(self, layout: Layout, cache: Path) -> None:
        """Find their place, and clear those of datasets that are gone.

        Args:
            layout: the dataset.
            cache: folder of the indices of all datasets.

        Raises:
            NoDataset: the folder holds none.
            DataProblem: the cache cannot be written to.
        """
        layout.require()
        self.layout = Layout(layout.root.resolve())
        self.folder = cache / hashlib.blake2b(os.fsencode(self.layout.root), digest_size=8).hexdigest()
        try:
            _clear(cache)
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # an index tells titles
            with suppress(FileExistsError):
                (self.folder / _DATASET).symlink_to(self.layout.root)
        except OSError as problem:
            raise DataProblem(
                f"{cache} is to keep the index of the dataset and cannot be written to ({problem.strerror}); "
                "set XDG_CACHE_HOME to another folder"
            ) from problem

    def index(self, progress: Progress) -> Index:
        """The index of the present state: the one that is there, or an older one brought up to date, or a new one.

        Args:
            progress: told how many files have been read, of how many; not at all where the index is there.

        Raises:
            Changed: the dataset changed meanwhile.
        """
        try:
            wanted = _committed(self.layout)
            with FileLock(self.folder / "lock"):
                return self._found(wanted) or self._made(wanted, progress)
        except (OSError, duckdb.IOException) as problem:
            raise Changed(str(problem)) from problem

    def _found(self, wanted: Mapping[str, str]) -> Index | None:
        for file in self.folder.glob(f"{_name(wanted)}-*.duckdb"):
            with suppress(duckdb.Error):  # another release of DuckDB wrote it
                if _is_whole(file):
                    return Index(self.layout, file)
        return None

    def _made(self, wanted: Mapping[str, str], progress: Progress) -> Index:
        older = sorted(self.folder.glob("*.duckdb"), key=lambda file: file.stat().st_mtime, reverse=True)
        making = self.folder / "making"
        base = next((file for file in older if file.name.startswith(_REVISED) and _is_whole(file)), None)
        if base is None or not self._brought_up_to_date(base, making, wanted, progress):
            self._remove_unfinished()
            renew(making, self.layout, wanted, progress)
        made = self.folder / f"{_name(wanted)}-{file_digest(making)[:_DIGITS]}.duckdb"
        making.rename(made)
        for file in older:
            if file != made:
                file.unlink(missing_ok=True)
        return Index(self.layout, made)

    def _brought_up_to_date(self, base: Path, making: Path, wanted: Mapping[str, str], progress: Progress) -> bool:
        self._remove_unfinished()
        try:
            shutil.copyfile(base, making)
            return renew(making, self.layout, wanted, progress)
        except duckdb.Error:  # not for this release of DuckDB; if it is the dataset that changed, a new one will say so
            return False

    def _remove_unfinished(self) -> None:
        """What a process left that was killed; nobody else is making one now."""
        for file in self.folder.glob("making*"):
            file.unlink()


def _committed(layout: Layout) -> dict[str, str]:
    """Path inside the dataset -> sha256 of every file with rows."""
    folders = (layout.shards, layout.quarantine)
    return {name: digest for name, digest in committed_files(layout).items() if (layout.root / name).parent in folders}


def _name(wanted: Mapping[str, str]) -> str:
    """What the files of an index of this state are called, but for their ends."""
    content = json.dumps(sorted(wanted.items())).encode()
    return _REVISED + hashlib.blake2b(content, digest_size=16).hexdigest()


def _is_whole(file: Path) -> bool:
    return file.stem.endswith(f"-{file_digest(file)[:_DIGITS]}")


def _clear(cache: Path) -> None:
    """Remove the indices of datasets that are gone."""
    for link in cache.glob(f"*/{_DATASET}*"):  # with the star also where it leads nowhere
        if not Layout(link).plan.is_file():
            shutil.rmtree(link.parent, ignore_errors=True)
