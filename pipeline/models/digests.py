"""Checking files against the hashes of the registry."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.models.errors import WrongBytes
from pipeline.models.registry import File
from schemas.files import file_digest


def check(path: Path, size: int | None, expected: str | None, advice: str) -> str:
    """The sha256 of a file, after checking that it is the expected one.

    Raises:
        WrongBytes: the file is missing, or has another size or hash; the message ends with `advice`.
    """
    if not path.is_file():
        raise WrongBytes(str(path), "a file", "nothing", advice)
    actual_size = path.stat().st_size
    if size is not None and actual_size != size:
        raise WrongBytes(str(path), f"{size} bytes", f"{actual_size} bytes", advice)
    actual = file_digest(path)
    if expected is not None and actual != expected:
        raise WrongBytes(str(path), f"sha256 {expected}", f"sha256 {actual}", advice)
    return actual


def check_all(files: Iterable[File], folder: Path, advice: str) -> list[File]:
    """The files with their sizes and hashes in `folder`, after checking that all are the expected ones.

    Raises:
        WrongBytes: see `check`.
    """
    return [
        File(
            path=file.path,
            sha256=check(folder / file.path, file.size, file.sha256, advice),
            size=(folder / file.path).stat().st_size,
        )
        for file in files
    ]


def matches(file: File, path: Path) -> bool:
    """Whether `path` has exactly this file's bytes; always false for a file without a hash."""
    if file.sha256 is None:
        return False
    try:
        check(path, file.size, file.sha256, advice="")
    except WrongBytes:
        return False
    return True
