"""The commit log, as a state machine: writers that are killed, delayed and overtaken at any request."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from schemas.storage import commit_log
from schemas.storage.commit_log import CommitLog, Place
from schemas.storage.objects import StorageError
from schemas.storage.store import Overtaken
from tests.support.memory_bucket import Client, Killed, MemoryBucket

KILLS = st.one_of(st.just(0), st.integers(1, 12))  # at which request of an action the process ends; 0: at none
WRITERS = st.integers(0, 2)


class Writer:
    """A process that commits units, each of an object and a removal of an earlier one now and then."""

    def __init__(self, server: MemoryBucket) -> None:
        self.client = Client(server)
        self.log = CommitLog(self.client)

    def commit(self, name: str, content: bytes, removed: list[str]) -> None:
        key = self.log.key_for(name)
        self.client.put(key, content)
        place = Place(size=len(content), key=key, sha256=hashlib.sha256(content).hexdigest())
        self.log.append({name: place}, removed)


def opened(server: MemoryBucket) -> CommitLog:
    log = CommitLog(Client(server))
    log.refresh()
    return log


class Rivals(RuleBasedStateMachine):
    """What the log must hold: name -> content, of commits that returned. A killed one may have come through or not."""

    @initialize()
    def start(self) -> None:
        commit_log._PACK_EVERY = 3
        self.server = MemoryBucket()
        self.writers: list[Writer | None] = [None, None, None]
        self.epoch = 0
        self.expected: dict[str, bytes] = {}
        self.unclear: list[tuple[str, bytes, list[str]]] = []
        self.next = 0

    @rule(number=WRITERS, kill=KILLS, acts=st.booleans(), rival=KILLS, fences=st.booleans())
    def acquire(self, number: int, kill: int, acts: bool, rival: int, fences: bool) -> None:
        writer = self.writers[number] = Writer(self.server)
        self._arm(writer, number, kill, acts, rival, fences)
        try:
            writer.log.acquire()
        except Killed:
            self.writers[number] = None

    @rule(number=WRITERS, kill=KILLS, acts=st.booleans(), rival=KILLS, remove=st.booleans(), again=st.booleans())
    def commit(self, number: int, kill: int, acts: bool, rival: int, remove: bool, again: bool) -> None:
        """By a writer, which may have been overtaken; a rival puts its fence at a request of it."""
        writer = self.writers[number]
        if writer is None or writer.log.epoch is None:
            return
        self._settle()
        names = sorted(self.expected)
        name = names[0] if again and names else f"shards/train-{self.next:06d}.parquet"
        removed = names[-1:] if remove and names[-1:] != [name] else []
        content = f"{number} {self.next}".encode()
        self.next += 1
        self._arm(writer, number, kill, acts, rival, fences=True)
        try:
            writer.commit(name, content, removed)
        except Killed:
            self.writers[number] = None
            self.unclear.append((name, content, removed))
        except Overtaken:
            self.writers[number] = None
        else:
            self._apply(name, content, removed)

    @invariant()
    def whole(self) -> None:
        """Every name stands for an object that is there, with the content that was committed under that name."""
        if not hasattr(self, "server"):
            return
        self._settle()
        state = opened(self.server).state
        assert {name: self.server.objects[place.key or ""] for name, place in state.files.items()} == self.expected
        for place in state.files.values():
            assert hashlib.sha256(self.server.objects[place.key or ""]).hexdigest() == place.sha256

    def teardown(self) -> None:
        """A last writer, which nothing happens to, leaves no stray."""
        if hasattr(self, "server"):
            last = Writer(self.server)
            last.log.acquire()
            named = {place.key for place in last.log.state.files.values()}
            assert {key for key in self.server.objects if key.startswith("shards/")} == named
        commit_log._PACK_EVERY = 200

    def _arm(self, writer: Writer, number: int, kill: int, acts: bool, rival: int, fences: bool) -> None:
        writer.client.kill_at, writer.client.kill_after = kill, acts
        writer.client.between_at = rival
        writer.client.between = lambda: self._interfere((number + 1) % 3, fences)

    def _interfere(self, number: int, fences: bool) -> None:
        """Another process commits, as the writer that it was or as the new one."""
        rival = self.writers[number]
        if fences or rival is None or rival.log.epoch is None:
            rival = self.writers[number] = Writer(self.server)
            rival.log.acquire()
        rival.client.kill_at = rival.client.between_at = 0  # what was left of its own last action
        name, content = f"shards/train-{self.next:06d}.parquet", f"rival {self.next}".encode()
        self.next += 1
        try:
            rival.commit(name, content, [])
        except Overtaken:
            return
        self._settle()
        self._apply(name, content, [])

    def _settle(self) -> None:
        """Ask the log what became of commits whose process was killed: all of one, or nothing."""
        if not self.unclear:
            return
        state = opened(self.server).state
        for name, content, removed in self.unclear:
            place = state.files.get(name)
            if place is not None and self.server.objects.get(place.key or "") == content:
                self._apply(name, content, removed)
        self.unclear.clear()

    def _apply(self, name: str, content: bytes, removed: list[str]) -> None:
        for gone in removed:
            self.expected.pop(gone, None)
        self.expected[name] = content


Rivals.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestRivals = Rivals.TestCase


def test_a_writer_that_was_overtaken_publishes_nothing_more():
    server = MemoryBucket()
    first, second = Writer(server), Writer(server)
    first.log.acquire()
    first.commit("shards/a.parquet", b"a", [])
    second.log.acquire()
    with pytest.raises(Overtaken, match="another songmill process has begun to write"):
        first.commit("shards/b.parquet", b"b", [])
    assert [*opened(server).state.files] == ["shards/a.parquet"]


def test_an_entry_is_ours_by_its_nonce_even_if_the_request_seems_refused(monkeypatch):
    """The answer was lost, and what was read to settle it arrived damaged."""
    server = MemoryBucket()
    writer = Writer(server)
    writer.log.acquire()
    create = writer.client.create
    monkeypatch.setattr(writer.client, "create", lambda key, content: create(key, content) and False)
    writer.commit("shards/a.parquet", b"a", [])
    assert [*opened(server).state.files] == [*writer.log.state.files] == ["shards/a.parquet"]


def test_a_writer_can_ask_whether_it_still_is_one():
    server = MemoryBucket()
    first = Writer(server)
    first.log.acquire()
    first.log.confirm()
    Writer(server).log.acquire()
    with pytest.raises(Overtaken):
        first.log.confirm()


def test_objects_in_the_making_are_swept_by_the_next_writer_but_other_objects_are_not():
    server = MemoryBucket()
    first = Writer(server)
    first.log.acquire()
    first.client.put(first.log.key_for("shards/a.parquet"), b"half a unit")
    server.objects["shards/notes-e1.txt"] = server.objects["songs/x-e0-12345678.flac"] = b"of the user"
    Writer(server).log.acquire()
    assert {key for key in server.objects if not key.startswith("_songmill")} == {
        "shards/notes-e1.txt",
        "songs/x-e0-12345678.flac",
    }


@given(st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_a_flipped_bit_in_an_entry_is_found(position):
    server = MemoryBucket()
    writer = Writer(server)
    writer.log.acquire()
    writer.commit("shards/a.parquet", b"a", [])
    key = max(key for key in server.objects if "/entries/" in key)
    content = bytearray(server.objects[key])
    content[position % len(content)] ^= 1
    server.objects[key] = bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        opened(server)


def test_a_hole_in_the_log_is_found():
    server = MemoryBucket()
    writer = Writer(server)
    writer.log.acquire()
    for i in range(3):
        writer.commit(f"shards/{i}.parquet", b"a", [])
    del server.objects["_songmill/log/entries/0000000002.json"]
    with pytest.raises(StorageError, match=r"0000000002\.json is missing"):
        opened(server)


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_a_damaged_snapshot_costs_time_only(damage, monkeypatch):
    monkeypatch.setattr(commit_log, "_PACK_EVERY", 2)
    server = MemoryBucket()
    writer = Writer(server)
    writer.log.acquire()
    for i in range(4):
        writer.commit(f"shards/{i}.parquet", b"a", [])
    whole = opened(server).state
    snapshot = max(key for key in server.objects if "/snapshots/" in key)
    if damage is None:
        del server.objects[snapshot]
    else:
        server.objects[snapshot] = damage
    assert opened(server).state == whole
