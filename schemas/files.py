"""How a file that somebody keeps is written, and what identifies it.

Both are part of what a dataset, a run and an export promise: under its name a file is whole or not there, whatever
happens while it is written, and a record that names its SHA-256 names these very bytes.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DRAFT = ".tmp"  # how the names of unfinished files end; they begin with a dot


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Write a file or a folder so that it takes its name at the end of the block, or nothing of it stays.

    Args:
        target: where it is to stand; an older file, or an empty folder, is replaced.

    Yields:
        The path beside `target` to write to. No other process and no other thread writes to it.

    Raises:
        OSError: it cannot be written; the error names `target`, unless it is about another file.
    """
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_DRAFT}")
    try:
        with naming(target):
            yield draft
            move_durably(draft, target)
    except BaseException as error:
        _remove(draft)  # on a full disk it takes room
        if isinstance(error, OSError) and error.filename == str(draft):
            error.filename = str(target)
        raise


def write_durably(target: Path, content: bytes) -> None:
    """Write a small file as `written_whole` does."""
    with written_whole(target) as draft:
        draft.write_bytes(content)


def move_durably(source: Path, target: Path) -> None:
    """Rename a file or a folder over `target`, so that name and bytes survive a power cut.

    Args:
        source: on the file system of `target`.
        target: its folder is made where it is not there.
    """
    _sync_all(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    _sync(target.parent)


def drafts(folder: Path, names: str) -> Iterator[Path]:
    """Unfinished files of a folder: left by killed processes, or being written now.

    Args:
        folder: to look in.
        names: glob of the names that the files were to have.
    """
    return folder.glob(f".{names}.*{_DRAFT}")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system say which file or folder they are about; a full disk's do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _sync_all(path: Path) -> None:
    """Flush a file to the disk, or everything in a folder."""
    if path.is_dir():
        for inner in path.iterdir():
            _sync_all(inner)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        with suppress(OSError):
            draft.unlink()
