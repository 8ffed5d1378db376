"""The commit log of a dataset in a bucket: which names stand for which objects, settled by create-only requests alone.

A folder publishes by renaming, which buckets cannot. Here the log decides: entry n is the object `log/<n>.json`, which
exactly one process can create. It says which names now stand for which objects (whose keys are used once), or are gone.
What no entry names is not there for anybody.

Who wants to write puts a fence: an entry with an epoch of its own. Everything below the fence is final, for the writer
before it finds its next entry taken, sees another epoch and stops. So safety rests neither on clocks nor on a lease.
Objects of earlier epochs that no entry names were being written when their process was stopped, and are swept.

Now and then the state is packed into a snapshot, so that nobody has to read thousands of entries. Entries stay: were
one deleted, a writer that had been asleep since could create it again.
"""

import hashlib
import json
import re
import secrets
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, TypeAdapter

from schemas.storage.objects import Bucket, StorageError
from schemas.storage.store import Overtaken

LOG = "_songmill/log"
_ENTRIES = f"{LOG}/entries"
_SNAPSHOTS = f"{LOG}/snapshots"
_NEWEST = f"{LOG}/newest"  # number of the newest snapshot; a hint
_PACK_EVERY = 200  # entries between two snapshots
_REREADS = 3  # of an object whose digest is wrong, before it is said to be damaged
_FOLDERS = ("shards", "quarantine", "features", "_songmill")  # where objects of the log may be
_OVERTAKEN = (
    "another songmill process has begun to write this dataset; this one stops, and nothing is lost: what it had not "
    "committed, the other one does"
)
_MARK = re.compile(r"-e(\d+)-[0-9a-f]{8}$")  # at the end of an object's name: its epoch, and a nonce


class Place(BaseModel):
    """Where a file is: in an object of its own, or, small as it is, in the log.

    Attributes:
        size: in bytes.
        key: of the object, below the dataset.
        sha256: of its bytes.
        text: the file itself.
    """

    size: int
    key: str | None = None
    sha256: str | None = None
    text: str | None = None


class Entry(BaseModel):
    """One change of a dataset; one without files and removals is a fence.

    Attributes:
        epoch: of the writer; grows from writer to writer.
        nonce: makes the entry unlike all others.
        files: name -> place.
        removed: names that are gone.
    """

    epoch: int
    nonce: str
    files: dict[str, Place] = {}
    removed: list[str] = []


@dataclass
class State:
    """What the entries so far amount to.

    Attributes:
        number: of the last entry; entries are numbered from 1.
        epoch: the highest.
        files: name -> place.
    """

    number: int = 0
    epoch: int = 0
    files: dict[str, Place] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Apply the next entry."""
        self.number += 1
        self.epoch = max(self.epoch, entry.epoch)
        self.files |= entry.files
        for name in entry.removed:
            self.files.pop(name, None)


class CommitLog:
    """The log of one dataset, and its state as far as it was read.

    Attributes:
        state: after the last entry that was read or written.
        epoch: of this writer; None of a reader.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.state = State()
        self.epoch: int | None = None

    def refresh(self) -> None:
        """Read what has been added since.

        Raises:
            StorageError: an entry is missing or damaged.
        """
        state = replace(self.state, files=dict(self.state.files)) if self.state.number else self._packed()
        keys = self._entries_behind(state.number)
        for key, content in zip(keys, self._bucket.read_all(keys), strict=True):
            state.add(Entry.model_validate(self._checked(key, content)))
        self.state = state

    def acquire(self) -> None:
        """Become the writer: put a fence, read everything below it, and sweep."""
        while True:
            self.refresh()
            epoch = self.state.epoch + 1
            if self._append(Entry(epoch=epoch, nonce=secrets.token_hex(8))):
                break
        self.epoch = epoch
        self._sweep()

    def append(self, files: Mapping[str, Place], removed: Iterable[str]) -> None:
        """Publish.

        Raises:
            Overtaken: another writer has put a fence; nothing was published.
        """
        assert self.epoch is not None, "only a writer publishes"
        gone = [name for name in removed if name in self.state.files]
        if not files and not gone:
            return
        places = (self.state.files.get(name) for name in [*gone, *files])
        replaced = [place.key for place in places if place is not None and place.key is not None]
        if not self._append(Entry(epoch=self.epoch, nonce=secrets.token_hex(8), files=dict(files), removed=gone)):
            raise Overtaken(_OVERTAKEN)
        self._bucket.delete(replaced)
        if self.state.number % _PACK_EVERY == 0:
            self._pack()

    def confirm(self) -> None:
        """Look whether this is still the writer.

        Raises:
            Overtaken: another one has put a fence.
        """
        if self.epoch is not None and next(iter(self._bucket.list(_ENTRIES, after=_entry(self.state.number))), None):
            raise Overtaken(_OVERTAKEN)

    def key_for(self, name: str) -> str:
        """A key that no object has had, for the next version of a file."""
        path = PurePosixPath(name)
        return str(path.with_name(f"{path.stem}-e{self.epoch}-{secrets.token_hex(4)}{path.suffix}"))

    def _append(self, entry: Entry) -> bool:
        content, key = _sealed(entry.model_dump(mode="json", exclude_defaults=True)), _entry(self.state.number + 1)
        if not self._bucket.create(key, content):
            # It may be ours, if the answer was lost and what settles that arrived damaged: its nonce tells for certain.
            there = Entry.model_validate(self._checked(key, None))
            if there.nonce != entry.nonce:
                return False
        self.state.add(entry)
        return True

    def _sweep(self) -> None:
        """Delete objects of earlier epochs that no name stands for.

        The fence comes first, so that none of them can be named any more.
        """
        self._bucket.delete(key for key, epoch in self.strays().items() if epoch < (self.epoch or 0))

    def strays(self) -> dict[str, int]:
        """Key -> epoch, of objects that no name stands for: left by a killed writer, or about to be named."""
        named = {place.key for place in self.state.files.values()}
        return {
            found.key: epoch
            for folder in _FOLDERS
            for found in self._bucket.list(folder)
            if found.key not in named and (epoch := epoch_of(found.key)) is not None
        }

    def _pack(self) -> None:
        """Write a snapshot. It is the same whoever writes it, and a writer killed here has lost nothing."""
        files = {name: place.model_dump(exclude_defaults=True) for name, place in self.state.files.items()}
        body = {"number": self.state.number, "epoch": self.state.epoch, "files": files}
        self._bucket.put(_snapshot(self.state.number), zlib.compress(_sealed(body), 1))
        self._bucket.put(_NEWEST, str(self.state.number).encode())

    def _packed(self) -> State:
        """The newest snapshot, or the empty state."""
        hint = self._bucket.read(_NEWEST)
        if hint is None or not hint.content.isdigit():
            return State()
        key = _snapshot(int(hint.content))
        found = self._bucket.read(key)
        try:
            body = _unsealed(zlib.decompress(found.content)) if found else None
        except zlib.error:
            body = None
        if body is None:  # it only saves time: the entries say the same
            return State()
        files = TypeAdapter(dict[str, Place]).validate_python(body["files"])
        return State(body["number"], body["epoch"], files)

    def _entries_behind(self, number: int) -> list[str]:
        """Keys of all later entries; they are listed again if one is missing, for a listing may be damaged too."""
        for _ in range(_REREADS):
            keys = [found.key for found in self._bucket.list(_ENTRIES, after=_entry(number))]
            wanted = [_entry(number + i) for i in range(1, len(keys) + 1)]
            if keys == wanted:
                return keys
        missing = next(key for key, there in zip(wanted, keys, strict=True) if key != there)
        raise StorageError(f"{missing} is missing: the dataset's log has a hole")

    def _checked(self, key: str, content: bytes | None) -> dict[str, Any]:
        """An entry as it was written; it is read again if it arrived damaged."""
        for _ in range(1 + _REREADS):
            if content is not None and (body := _unsealed(content)) is not None:
                return body
            again = self._bucket.read(key)
            content = again.content if again else None
        raise StorageError(f"{key} is damaged: its content is not what was written")


def epoch_of(key: str) -> int | None:
    """The epoch in which an object was written; None of one that has no part in the log."""
    marked = _MARK.search(PurePosixPath(key).stem)
    return int(marked[1]) if marked else None


def _entry(number: int) -> str:
    return f"{_ENTRIES}/{number:010d}.json"


def _snapshot(number: int) -> str:
    return f"{_SNAPSHOTS}/{number:010d}.json.z"


def _sealed(body: Mapping[str, Any]) -> bytes:
    """JSON behind its own digest, since nobody else notices a flipped bit."""
    content = json.dumps(body, separators=(",", ":")).encode()
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _unsealed(sealed: bytes) -> dict[str, Any] | None:
    """The body, or None if it is not what was sealed."""
    digest, _, content = sealed.partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    return json.loads(content)  # type: ignore[no-any-return]
