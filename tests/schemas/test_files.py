"""A file is whole under its name or not there, whenever a process is killed, the power fails or a disk fills."""

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.files import drafts, file_digest, move_durably, write_durably, written_whole

STEPS = 8  # more than any of the writers below takes


class Killed(BaseException):
    """Stands for SIGKILL and for a power cut: nothing may catch it."""


class Disk:
    """Breaks at one of its changes, and knows which bytes have been flushed."""

    def __init__(self, patch: pytest.MonkeyPatch, breaks_at: int, error: BaseException) -> None:
        self._left, self._error, self._dead = breaks_at, error, False
        self._flushed: set[int] = set()
        self._fsync = os.fsync
        write = Path.write_bytes
        patch.setattr(os, "fsync", self._changing(self._flush))
        patch.setattr(Path, "replace", self._changing(Path.replace))
        patch.setattr(Path, "unlink", self._changing(Path.unlink))
        patch.setattr(Path, "mkdir", self._changing(Path.mkdir))
        patch.setattr(
            Path, "write_bytes", self._changing(write, lambda path, data: write(path, data[: len(data) // 2]))
        )

    def _flush(self, descriptor: int) -> None:
        self._flushed.add(os.fstat(descriptor).st_ino)
        self._fsync(descriptor)

    def _changing(self, change: Callable[..., Any], half: Callable[..., Any] = lambda *_: None) -> Callable[..., Any]:
        def maybe(*args: Any, **kwargs: Any) -> Any:
            if self._dead:
                raise self._error
            if self._left == 0:
                self._dead = isinstance(self._error, Killed)
                self._left = -1
                half(*args)
                raise self._error
            self._left -= 1
            return change(*args, **kwargs)

        return maybe

    def bytes_after_power_cut(self, path: Path) -> bytes:
        """Those that were flushed."""
        return path.read_bytes() if path.stat().st_ino in self._flushed else b"lost"


def written_by_bytes(target: Path, content: bytes) -> None:
    write_durably(target, content)


def written_in_a_block(target: Path, content: bytes) -> None:
    with written_whole(target) as draft, draft.open("wb") as file:
        file.write(content)


def moved(target: Path, content: bytes) -> None:
    source = target.with_name("source")
    source.write_bytes(content)
    move_durably(source, target)


@settings(deadline=None, max_examples=150)
@given(
    write=st.sampled_from([written_by_bytes, written_in_a_block, moved]),
    breaks_at=st.integers(0, STEPS),
    old=st.none() | st.binary(max_size=20),
    new=st.binary(min_size=2, max_size=20),
)
def test_killed_at_any_moment_the_old_bytes_or_the_new_ones_are_there(tmp_path_factory, write, breaks_at, old, new):
    target = tmp_path_factory.mktemp("folder") / "file"
    if old is not None:
        target.write_bytes(old)
    before = target.stat().st_ino if old is not None else None
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, breaks_at, Killed())
        try:
            write(target, new)
            finished = True
        except Killed:
            finished = False
    assert finished or breaks_at < STEPS
    if target.exists() and target.stat().st_ino != before:
        assert disk.bytes_after_power_cut(target) == new
    else:
        assert not finished
        assert (target.read_bytes() if target.exists() else None) == old


@settings(deadline=None, max_examples=60)
@given(write=st.sampled_from([written_by_bytes, written_in_a_block]), breaks_at=st.integers(0, STEPS))
def test_an_error_at_any_moment_leaves_no_draft_and_names_the_file(tmp_path_factory, write, breaks_at):
    target = tmp_path_factory.mktemp("folder") / "file"
    target.write_bytes(b"old")
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, breaks_at, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        try:
            write(target, b"new")
            failed = None
        except OSError as error:
            failed = error
    assert [*target.parent.iterdir()] == [target]
    assert target.read_bytes() in ((b"old", b"new") if failed else (b"new",))
    assert failed is None or failed.filename == str(target)


def stop_in_the_middle(target: Path, stopped: type[BaseException]) -> None:
    with written_whole(target) as draft:
        if target.name == "folder":
            draft.mkdir()
            draft /= "inner"
        draft.write_bytes(b"half")
        raise stopped


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, ValueError])
def test_a_block_that_ends_early_leaves_what_was_there(tmp_path: Path, stopped: type[BaseException]):
    (tmp_path / "file").write_bytes(b"old")
    for target in (tmp_path / "file", tmp_path / "folder"):
        with pytest.raises(stopped):
            stop_in_the_middle(target, stopped)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_appears_with_all_that_is_in_it_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk = Disk(monkeypatch, 1000, Killed())
    (tmp_path / "folder").mkdir()  # an empty one is replaced
    with written_whole(tmp_path / "folder") as draft:
        (draft / "a" / "b").mkdir(parents=True)
        (draft / "a" / "b" / "file").write_bytes(b"deep")
        (draft / "file").write_bytes(b"flat")
        assert not [*(tmp_path / "folder").iterdir()]
    assert disk.bytes_after_power_cut(tmp_path / "folder" / "a" / "b" / "file") == b"deep"
    assert disk.bytes_after_power_cut(tmp_path / "folder" / "file") == b"flat"


def test_a_folder_that_is_not_there_is_named_by_the_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as missing:
        write_durably(tmp_path / "nowhere" / "file", b"")
    assert missing.value.filename == str(tmp_path / "nowhere" / "file")


def test_many_may_write_one_file_at_a_time(tmp_path: Path):
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_durably, args=(tmp_path / "file", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_drafts_of_files_by_their_names(tmp_path: Path):
    with written_whole(tmp_path / "a.json") as draft, written_whole(tmp_path / "b.txt") as other:
        draft.touch()
        other.touch()
        (tmp_path / ".notes.tmp").touch()
        assert [*drafts(tmp_path, "*.json")] == [draft]
    assert not [*drafts(tmp_path, "*.json")]


def test_the_digest_is_that_of_the_bytes(tmp_path: Path):
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
