"""Files that survive a power cut: whole under their new name, or not there at all."""

import hashlib
import os
from pathlib import Path

from pipeline.errors import naming


def move_durably(source: Path, target: Path) -> None:
    """Rename over `target` so that the new name survives a power cut."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    _sync_folder(target.parent)


def write_durably(target: Path, content: bytes) -> None:
    """Write a small file so that it is either there whole or not at all."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with naming(target):
            temporary.write_bytes(content)
            move_durably(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk it takes room
        raise


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
