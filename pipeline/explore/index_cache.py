"""Where indexes are kept between starts: in the user's cache, one folder per dataset, one file for its newest state.

An index's name has digests of the files whose rows it contains and of its own bytes, so that an outdated or a damaged
one is never opened. It is built under a lock, renamed into place when complete, and not written to again: a process
that has an older one open can keep using it even after it is removed.
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
from pipeline.explore.index import Changed, Index, is_unreadable
from pipeline.explore.index_build import REVISION, Progress, renew
from schemas.commits import committed_files
from schemas.dataset import Layout, folder_of
from schemas.files import file_digest
from schemas.storage.location import absolute
from schemas.storage.options import scheme

_DATASET = "dataset"  # a link to a folder, so that the index can be removed once the dataset is gone
_REVISED = f"r{REVISION}-"
_DIGITS = 16  # of a file's digest in its name
_UNFINISHED = "making"  # an index that is being built


def index_cache() -> Path:
    """The user's folder of indexes."""
    return platformdirs.user_cache_path("songmill") / "explore"


class IndexCache:
    """The indexes of one dataset.

    Attributes:
        layout: the dataset, by its absolute path or its URL.
        folder: where they are stored.
    """

    def __init__(self, layout: Layout, cache: Path) -> None:
        """Create the folder, and remove the indexes of folders that are gone.

        Args:
            layout: the dataset.
            cache: folder of the indexes of all datasets.

        Raises:
            NoDataset: there is none.
            DataProblem: the cache cannot be written to.
        """
        layout.require()
        place = absolute(layout.url)
        self.layout = layout if place == layout.url else Layout.at(place)
        self.folder = cache / hashlib.blake2b(os.fsencode(place), digest_size=8).hexdigest()
        try:
            _clear(cache)
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # an index contains titles
            if not scheme(place):
                with suppress(FileExistsError):
                    (self.folder / _DATASET).symlink_to(place)
        except OSError as problem:
            raise DataProblem(
                f"the index of the dataset belongs in {cache}, which cannot be written to ({problem.strerror}); "
                "set XDG_CACHE_HOME to another folder"
            ) from problem

    def index(self, progress: Progress) -> Index:
        """The index of the current state: an existing one, or an older one brought up to date, or a new one.

        Args:
            progress: called with how many files have been read, of how many; never if the index exists already.

        Raises:
            Changed: the dataset changed meanwhile.
        """
        try:
            wanted = _committed(self.layout)
            with FileLock(self.folder / "lock"):
                return self._found(wanted) or self._made(wanted, progress)
        except (OSError, duckdb.Error) as problem:
            if isinstance(problem, duckdb.Error) and not is_unreadable(problem):
                raise
            raise Changed(str(problem).strip().rpartition("\n")[2]) from problem

    def _found(self, wanted: Mapping[str, str]) -> Index | None:
        for file in self.folder.glob(f"{_name(wanted)}-*.duckdb"):
            with suppress(duckdb.Error):  # written by another release of DuckDB
                if _is_whole(file):
                    return Index(self.layout, file)
        return None

    def _made(self, wanted: Mapping[str, str], progress: Progress) -> Index:
        older = sorted(self.folder.glob("*.duckdb"), key=lambda file: file.stat().st_mtime, reverse=True)
        unfinished = self.folder / _UNFINISHED
        base = next((file for file in older if file.name.startswith(_REVISED) and _is_whole(file)), None)
        if base is None or not self._brought_up_to_date(base, unfinished, wanted, progress):
            self._remove_unfinished()
            renew(unfinished, self.layout, wanted, progress)
        made = self.folder / f"{_name(wanted)}-{file_digest(unfinished)[:_DIGITS]}.duckdb"
        unfinished.rename(made)
        for file in older:
            if file != made:
                file.unlink(missing_ok=True)
        return Index(self.layout, made)

    def _brought_up_to_date(self, base: Path, unfinished: Path, wanted: Mapping[str, str], progress: Progress) -> bool:
        self._remove_unfinished()
        try:
            shutil.copyfile(base, unfinished)
            return renew(unfinished, self.layout, wanted, progress)
        except duckdb.Error:  # from another release of DuckDB; if the dataset changed, building a new one will fail too
            return False

    def _remove_unfinished(self) -> None:
        """Remove what a killed process left behind; under the lock no other process is building one."""
        for file in self.folder.glob(f"{_UNFINISHED}*"):
            file.unlink()


def _committed(layout: Layout) -> dict[str, str]:
    """Name -> sha256 of every file with rows."""
    folders = (layout.shards, layout.quarantine)
    return {name: digest for name, digest in committed_files(layout).items() if folder_of(name) in folders}


def _name(wanted: Mapping[str, str]) -> str:
    """File name of an index of this state, without the index's own digest and the suffix."""
    content = json.dumps(sorted(wanted.items())).encode()
    return _REVISED + hashlib.blake2b(content, digest_size=16).hexdigest()


def _is_whole(file: Path) -> bool:
    return file.stem.endswith(f"-{file_digest(file)[:_DIGITS]}")


def _clear(cache: Path) -> None:
    """Remove the indexes of folders that are gone; whether a bucket is gone or only out of reach, nobody knows."""
    for link in cache.glob(f"*/{_DATASET}*"):  # the star makes glob list dangling links too
        if not Layout.at(link).store.exists(Layout.plan):
            shutil.rmtree(link.parent, ignore_errors=True)
