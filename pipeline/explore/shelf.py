"""Where indices stay between starts: in the user's cache, a folder a dataset, one file of its newest state.

A file is named after the files whose rows it holds, so that one of another state is never taken for it. Whoever makes one
holds a lock and renames it into place when it is whole. Files are never written to again: who has an older one open keeps
it, though it is removed.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import duckdb
import platformdirs
from filelock import FileLock

from pipeline.errors import DataProblem
from pipeline.explore.index import Changed, Index
from pipeline.explore.making import REVISION, Progress, renew
from pipeline.ledger import read_records
from schemas.dataset import Layout

_NAMED = "dataset.txt"  # its path, so that the index goes when the dataset has
_REVISED = f"r{REVISION}-"


def index_cache() -> Path:
    """The user's folder of indices."""
    return platformdirs.user_cache_path("songmill") / "explore"


class Shelf:
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
            DataProblem: the folder holds no dataset, or the cache cannot be written to.
        """
        if not layout.plan.is_file():
            raise DataProblem(f"{layout.root} is no songmill dataset: give a folder that `songmill curate` wrote")
        self.layout = Layout(layout.root.resolve())
        path = os.fsencode(self.layout.root)
        self.folder = cache / hashlib.blake2b(path, digest_size=8).hexdigest()
        try:
            _clear(cache)
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # an index tells titles
            (self.folder / _NAMED).write_bytes(path)
        except OSError as problem:
            raise DataProblem(
                f"{cache} is to keep the index of the dataset and cannot be written to ({problem.strerror}); "
                "set XDG_CACHE_HOME to another folder"
            ) from problem

    def index(self, progress: Progress, *, afresh: bool = False) -> Index:
        """The index of the dataset's present state: one that is there, or an older one brought up to date, or a new one.

        Args:
            progress: told how many files have been read, of how many; not at all where the index is there.
            afresh: make it from nothing, for the one that is there does not answer.

        Raises:
            Changed: the dataset changed meanwhile.
        """
        try:
            wanted = _committed(self.layout)
            with FileLock(self.folder / "lock"):
                index = None if afresh else self._found(wanted)
                return index or self._made(wanted, progress, afresh)
        except (OSError, duckdb.IOException) as problem:
            raise Changed(str(problem)) from problem

    def _found(self, wanted: Mapping[str, str]) -> Index | None:
        for file in self.folder.glob(f"{_name(wanted)}-*.duckdb"):
            try:
                return Index(self.layout, file)
            except duckdb.Error:  # damaged
                file.unlink()
        return None

    def _made(self, wanted: Mapping[str, str], progress: Progress, afresh: bool) -> Index:
        older = sorted(self.folder.glob("*.duckdb"), key=lambda file: file.stat().st_mtime)
        making = self.folder / "making"
        base = next((file for file in reversed(older) if file.name.startswith(_REVISED)), None)
        if afresh or base is None or not self._brought_up_to_date(base, making, wanted, progress):
            self._remove_unfinished()
            renew(making, self.layout, wanted, progress)
        # A name of its own: in one process DuckDB takes two files with the same name for one.
        made = making.rename(self.folder / f"{_name(wanted)}-{secrets.token_hex(4)}.duckdb")
        for file in older:
            file.unlink(missing_ok=True)
        return Index(self.layout, made)

    def _brought_up_to_date(self, base: Path, making: Path, wanted: Mapping[str, str], progress: Progress) -> bool:
        self._remove_unfinished()
        try:
            shutil.copyfile(base, making)
            return renew(making, self.layout, wanted, progress)
        except duckdb.Error:  # damaged; where it is the dataset that changed, a new one will say so too
            return False

    def _remove_unfinished(self) -> None:
        """What a process left that was killed; nobody else is making one now."""
        for file in self.folder.glob("making*"):
            file.unlink()


def _committed(layout: Layout) -> dict[str, str]:
    """Path inside the dataset -> sha256 of every file with rows."""
    files = {name: digest for record in read_records(layout) for name, digest in record.files.items()}
    folders = (layout.shards, layout.quarantine)
    return {name: digest for name, digest in files.items() if (layout.root / name).parent in folders}


def _name(wanted: Mapping[str, str]) -> str:
    """What the files of an index of this state are called, but for their ends."""
    content = json.dumps(sorted(wanted.items())).encode()
    return _REVISED + hashlib.blake2b(content, digest_size=16).hexdigest()


def _clear(cache: Path) -> None:
    """Remove the indices of datasets that are gone."""
    for named in cache.glob(f"*/{_NAMED}"):
        if not Layout(Path(os.fsdecode(named.read_bytes()))).plan.is_file():
            shutil.rmtree(named.parent, ignore_errors=True)
