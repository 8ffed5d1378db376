"""What a dataset asks of the place that it is kept in.

Files have names: paths relative to the dataset, with `/` between their parts. Two kinds of them are told apart:

- What a run commits is published: a file counts as a whole or not at all, and stands once `publish` has returned.
  Only the one process inside `writing` may publish.
- What is written beside that, by any process at any time, is put (the last one wins) or updated (none is lost).
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # they take long to import, and commands that read no dataset need neither
    import duckdb
    from pyarrow import fs


class StorageError(OSError):
    """The object store does not do what is asked; the message names the object and what it said."""


class MissingObjectError(StorageError, FileNotFoundError):
    """An object that was there when the dataset was opened is not there any more."""


class StoreBusy(Exception):  # noqa: N818 - it says what kind of problem
    """Another process is writing the dataset."""


class Overtaken(Exception):  # noqa: N818 - it says what kind of problem
    """Another process has begun to write the dataset since; nothing of what was to be published is."""


class Store(Protocol):
    """Files by name, in one place.

    Attributes:
        url: the place, as users name it.
        scratch: a local folder for files that are to be published; it is there within `writing`.
        logs: a local folder for logs; it need not exist yet.
    """

    url: str
    scratch: Path
    logs: Path

    @property
    def filesystem(self) -> "fs.FileSystem":
        """Opens files by name, for Arrow."""

    def address(self, name: str) -> str:
        """What DuckDB is to call a file."""

    def key(self, name: str) -> str:
        """Where a file really is, relative to the place: in a bucket, not under its name."""

    def let_read(self, connection: "duckdb.DuckDBPyConnection") -> None:
        """Let a connection open files by their addresses."""

    def refresh(self) -> None:
        """From now on show the files as they are now."""

    def version(self, name: str) -> object:
        """Another value whenever a file, or what files a folder has, may be another; None if there is no such."""

    def names(self, folder: str) -> list[str]:
        """Names of all files in a folder, but not in folders inside it, sorted; none if there is no such folder."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def get(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is no such file.
        """

    def publish(self, files: Mapping[str, Path | bytes], removed: Iterable[str] = ()) -> None:
        """Write files, then remove others.

        A process killed in between leaves the first of the files, or all of them and some of those to be removed. An
        object store leaves none or all of both.

        Args:
            files: name -> content; a local file is moved, and must lie in `scratch`.
            removed: names; those of files that are not there are allowed.

        Raises:
            Overtaken: another process writes the dataset now.
            OSError: they cannot be written.
        """

    def strays(self) -> list[str]:
        """Where files are that somebody began to publish or put: a killed process, or one that is at it just now."""

    def confirm(self) -> None:
        """Look, within `writing`, whether this is still the process that may write, before what needs no publishing.

        Raises:
            Overtaken: another process writes the dataset now.
        """

    def put(self, name: str, content: bytes) -> None:
        """Write a file that needs no lock; the last one to write it wins."""

    def put_names(self, folder: str) -> list[str]:
        """Names of all files that were put below a folder, at any depth, sorted."""

    def discard(self, names: Iterable[str]) -> None:
        """Remove files that were put; those that are not there are fine."""

    def update(self, name: str, change: Callable[[bytes | None], bytes]) -> None:
        """Replace a file that needs no lock by what `change` makes of it, of None if there is none.

        `change` is called again where another process was faster.
        """

    def writing(self) -> AbstractContextManager[None]:
        """Hold the right to publish, as the only process.

        Raises:
            StoreBusy: another process holds it.
        """
