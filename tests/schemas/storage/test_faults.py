"""Requests whose answers get lost, break off or are wrong: every outcome is nevertheless certain."""

import uuid
from collections.abc import Iterator
from datetime import timedelta
from threading import Thread

import pytest

from schemas.storage import objects
from schemas.storage.location import open_store
from schemas.storage.objects import Objects, StorageError
from schemas.storage.options import StorageOptions
from schemas.storage.store import Overtaken
from tests.support.faulty_s3 import ACTED, REFUSED, FaultyS3, faulty_s3
from tests.support.s3_server import BUCKET


@pytest.fixture(scope="module")
def server(s3) -> Iterator[FaultyS3]:
    with faulty_s3(s3) as proxy:
        yield proxy


@pytest.fixture
def proxy(server, monkeypatch) -> Iterator[FaultyS3]:
    """A proxy without faults so far; the client does not wait as long as usual."""
    monkeypatch.setattr(objects, "_TIMEOUT", "400ms")
    monkeypatch.setattr(objects, "_FIRST_WAIT_S", 0.01)
    short = timedelta(milliseconds=10)
    monkeypatch.setitem(objects._RETRIES, "backoff", {"init_backoff": short, "max_backoff": 2 * short, "base": 2})
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.planned.clear()
    server.share = 0.0


@pytest.fixture
def place() -> str:
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def opened(place: str) -> Objects:
    options = StorageOptions(allow_http=True)
    return Objects(place, options.of_store(place), options.of_client())


@pytest.mark.parametrize("fault", [*REFUSED, *ACTED])
class TestEveryFault:
    def test_a_create_is_ours_or_not(self, fault, proxy, place):
        bucket = opened(place)
        proxy.planned[:] = [fault, fault]
        assert bucket.create("a", b"mine 1")
        proxy.planned[:] = [fault]
        assert not bucket.create("a", b"mine 2")
        assert opened(place).read("a").content == b"mine 1"

    def test_a_swap_is_ours_or_not(self, fault, proxy, place):
        bucket = opened(place)
        bucket.put("a", b"1")
        tag = bucket.read("a").tag
        proxy.planned[:] = [fault, fault]
        assert bucket.swap("a", b"mine 2", tag)
        proxy.planned[:] = [fault]
        assert not bucket.swap("a", b"mine 3", tag)
        assert opened(place).read("a").content == b"mine 2"

    def test_other_requests_are_repeated(self, fault, proxy, place):
        bucket = opened(place)
        for number in range(3):
            proxy.planned[:] = [fault]
            bucket.put(f"x/{number}", b"content")
        proxy.planned[:] = [fault]
        assert [found.key for found in bucket.list("x")] == ["x/0", "x/1", "x/2"]
        proxy.planned[:] = [fault]
        assert bucket.read_range("x/0", 2, 3) == b"nte"
        proxy.planned[:] = [fault]
        bucket.delete(["x/0", "x/1"])
        proxy.planned[:] = [fault]
        assert bucket.read_all(["x/0", "x/1", "x/2"]) == [None, None, b"content"]


def test_answers_that_break_off_are_asked_for_again(proxy, place):
    bucket = opened(place)
    for number in range(5):
        bucket.put(f"x/{number}", b"content" * 1000)
    proxy.planned[:] = ["truncated"]
    assert len([*bucket.list("x")]) == 5
    proxy.planned[:] = ["truncated"]
    assert bucket.read("x/0").content == b"content" * 1000
    proxy.planned[:] = ["truncated"]
    assert bucket.read_range("x/0", 0, 7000) == b"content" * 1000


def test_a_flipped_bit_is_noticed_and_read_again(proxy, place, tmp_path):
    store = open_store(place, StorageOptions(lease_s=0.2))
    with store.writing():
        path = store.scratch / "a.bin"
        path.write_bytes(b"content" * 1000)
        store.publish({"shards/a.bin": path, "_songmill/plan.json": b'{"a": 1}'})
    reader = open_store(place)
    reader.refresh()
    proxy.planned[:] = ["flipped"]
    assert reader.get("shards/a.bin") == b"content" * 1000
    proxy.planned[:] = ["flipped"] * 3
    with pytest.raises(StorageError, match=r"shards/a\.bin is damaged"):
        reader.get("shards/a.bin")
    fresh = open_store(place)
    proxy.planned[:] = ["pass", "pass", "flipped", "flipped"]  # the hint and the listing, then two entries
    assert fresh.get("_songmill/plan.json") == b'{"a": 1}'


def test_a_bucket_that_is_not_there_is_said_at_once(proxy):
    bucket = opened("s3://nobodys-bucket/x")
    with pytest.raises(StorageError, match="s3://nobodys-bucket/x/a: there is no such bucket"):
        bucket.put("a", b"1")
    with pytest.raises(StorageError, match="there is no such bucket"):
        bucket.create("a", b"1")


def test_two_writers_and_one_request_in_ten_failing_lose_nothing(proxy, place):
    """Each begins to write when it has been overtaken, until all units are there."""
    proxy.share, proxy.kinds = 0.1, ("500", "503", "reset", "lost", "truncated")
    problems: list[BaseException] = []

    def work() -> None:
        store = open_store(place, StorageOptions(lease_s=0.2))
        for _ in range(50):
            try:
                store._log.acquire()
                for number in range(12):
                    name = f"_songmill/commits/{number:06d}.json"
                    if name not in store.names("_songmill/commits"):
                        store.publish({name: b"{}", f"shards/{number}.bin": bytes([number])})
            except Overtaken:
                store._log.epoch = None
            except BaseException as problem:
                problems.append(problem)
                raise
            else:
                return

    threads = [Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    proxy.share = 0.0
    assert not problems
    reader = open_store(place)
    assert len(reader.names("_songmill/commits")) == len(reader.names("shards")) == 12
    assert [reader.get(name) for name in sorted(reader.names("shards"), key=lambda n: int(n[7:-4]))] == [
        bytes([number]) for number in range(12)
    ]
