"""Conditions of `songmill explore` run in processes of their own: these may die, the server goes on."""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from subprocess import Popen
from urllib.parse import quote
from urllib.request import urlopen

import psutil
import pytest

from pipeline.explore.conditions import Conditions
from pipeline.explore.index_cache import IndexCache
from pipeline.explore.live import Live
from pipeline.explore.query import BadExpression, Page
from pipeline.explore.selection import Selection
from schemas.dataset import Layout
from tests.pipeline.explore.test_explore import SONGS, commit, song, write
from tests.support.command import start

LARGE = "(select max(length(repeat('a',100000000)||i)) from range(1000) t(i)) > 0"  # took 22 GB once
LONG = "(select count(*) from range(1000000000000) t(x) where x % 7 = 1) > 1"
ONE_LONG_VALUE = "levenshtein(repeat('a', 200000), repeat('b', 200000)) > 0"  # which DuckDB does not interrupt
MEMORY_BYTES = 300 << 20
SLACK_BYTES = 300 << 20  # what the interpreter and its libraries have anyway, and what comes between two looks


@pytest.fixture(scope="module", autouse=True)
def _fresh_fork_server() -> None:
    """Other tests preload networks into the fork server, whose memory would count as that of a condition."""
    forkserver._forkserver._stop()
    forkserver.set_forkserver_preload([])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Live:
    root = tmp_path_factory.mktemp("conditions")
    return Live(IndexCache(write(root, [song(number, root / "songs") for number in range(SONGS)]), root / "index"))


@pytest.fixture(scope="module")
def conditions() -> Iterator[Conditions]:
    with Conditions(memory_bytes=MEMORY_BYTES) as conditions:
        yield conditions


@pytest.fixture(scope="module")
def hurried() -> Iterator[Conditions]:
    with Conditions(limit_s=3.0) as conditions:
        yield conditions


def ask(conditions: Conditions, live: Live, where: str, left: Callable[[], bool] = lambda: False) -> Page:
    return conditions.page(live.index, Selection(where=where), live.marks, left)


def rows(conditions: Conditions, live: Live, where: str = "rhythm.bpm < 70") -> int:
    return ask(conditions, live, where).counts.rows


def answering(server: psutil.Process | None = None) -> list[psutil.Process]:
    """The processes that answer conditions."""
    return [child for child in (server or psutil.Process()).children() if "spawn_main" in " ".join(child.cmdline())]


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """The largest resident sizes of this process and of one that answers conditions, while the body runs."""
    seen, stop = {"server": 0, "answering": 0}, threading.Event()

    def look() -> None:
        while not stop.wait(0.005):
            children = [0]
            for child in psutil.Process().children():
                try:
                    children.append(child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            seen["server"] = max(seen["server"], psutil.Process().memory_info().rss)
            seen["answering"] = max(seen["answering"], *children)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        stop.set()
        looking.join()


class TestLimits:
    @pytest.mark.parametrize("where", [LARGE, "len(range(1000000000)) > title.length()"])
    def test_what_takes_too_much_memory_is_stopped(self, conditions: Conditions, live: Live, where: str):
        rows(conditions, live)
        before = psutil.Process().memory_info().rss
        with peaks() as seen, pytest.raises(BadExpression, match=r"the condition took more than 0.293 GiB"):
            ask(conditions, live, where)
        assert seen["answering"] < MEMORY_BYTES + SLACK_BYTES
        assert seen["server"] < before + (50 << 20)
        assert rows(conditions, live) == 10

    @pytest.mark.parametrize("where", [LONG, ONE_LONG_VALUE])
    def test_what_takes_too_long_is_stopped(self, hurried: Conditions, live: Live, where: str):
        with pytest.raises(BadExpression, match="this took longer than 3 s"):
            ask(hurried, live, where)
        assert rows(hurried, live) == 10

    @pytest.mark.parametrize("where", ["cast(repeat('a', 10000000) as int) > 3", "(" * 50_000 + "true" + ")" * 50_000])
    def test_what_is_told_is_short(self, conditions: Conditions, live: Live, where: str):
        with pytest.raises(BadExpression) as told:
            ask(conditions, live, where)
        assert len(str(told.value)) < 1100
        assert rows(conditions, live) == 10


class TestProcesses:
    def test_a_process_that_is_killed_is_replaced(self, conditions: Conditions, live: Live):
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(ask, conditions, live, LONG)
            rows(conditions, live)  # by another process
            time.sleep(0.3)
            killed = answering()
            for child in killed:  # one works on the condition, the other waits
                child.kill()
            with pytest.raises(BadExpression, match=r"ended \(SIGKILL\)"):
                asked.result()
        psutil.wait_procs(killed, 5)
        assert rows(conditions, live) == 10

    def test_a_condition_that_nobody_waits_for_is_stopped(self, conditions: Conditions, live: Live):
        rows(conditions, live)
        left = threading.Event()
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(ask, conditions, live, ONE_LONG_VALUE, left.is_set)
            time.sleep(0.3)
            left.set()
            with pytest.raises(BadExpression, match="the page was closed"):
                asked.result()
        assert rows(conditions, live) == 10

    def test_several_at_once_get_their_own_answers(self, live: Live):
        before = {*answering()}
        with Conditions(processes=2) as conditions, ThreadPoolExecutor(8) as pool:
            bounds = [*range(60, 80)] * 2
            found = list(pool.map(lambda bpm: rows(conditions, live, f"rhythm.bpm < {bpm}"), bounds))
            assert found == [bpm - 60 for bpm in bounds]
            assert len({*answering()} - before) == 2
        assert {*answering()} <= before

    def test_others_wait_their_turn_and_are_told_if_it_does_not_come(self, live: Live):
        with Conditions(limit_s=1.0, processes=1) as conditions, ThreadPoolExecutor() as pool:
            asked = pool.submit(ask, conditions, live, ONE_LONG_VALUE)
            time.sleep(0.2)
            with pytest.raises(BadExpression, match="other conditions are being evaluated"):
                rows(conditions, live)
            with pytest.raises(BadExpression, match="longer than 1 s"):
                asked.result()

    def test_each_state_of_the_dataset_has_its_own_answers(self, conditions: Conditions, tmp_path: Path):
        songs = [song(number, tmp_path / "songs") for number in range(SONGS)]
        changing = Live(IndexCache(write(tmp_path, songs), tmp_path / "index"))
        before = changing.index
        assert rows(conditions, changing) == 10
        commit(changing.layout, 2, songs[:3], supersedes=0)
        changing.reopen()
        assert rows(conditions, changing) == 3
        assert not before.file.exists()


@contextmanager
def serving(layout: Layout, cache: Path) -> Iterator[tuple[Popen, str]]:
    """`songmill explore` and its address."""
    process = start("explore", layout.url, XDG_CACHE_HOME=str(cache), PYTHONUNBUFFERED="1")
    try:
        yield process, re.search(r"http://(\S+)/", process.stdout.readline())[1]
    finally:
        process.kill()
        process.communicate()


def wait_until(done: Callable[[], bool], limit_s: float = 120) -> None:
    until = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)


class TestServer:
    def test_processes_end_with_their_request_and_with_the_server(self, live: Live, tmp_path: Path):
        with serving(live.layout, tmp_path) as (process, host):
            server = psutil.Process(process.pid)
            assert urlopen(f"http://{host}/?where=rhythm.bpm%3C70").status == 200
            [first] = answering(server)

            def ask_long() -> socket.socket:
                asking = socket.create_connection(host.split(":"))
                asking.send(f"GET /?where={quote(LONG)} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                return asking

            ask_long().close()
            wait_until(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
            assert urlopen(f"http://{host}/?where=rhythm.bpm%3C70").status == 200
            wait_until(lambda: len(answering(server)) == 1)
            [second] = answering(server)
            before_s = second.cpu_times().user
            with ask_long():
                wait_until(lambda: second.cpu_times().user > before_s + 0.2)
                os.kill(process.pid, signal.SIGKILL)
                wait_until(lambda: not second.is_running() or second.status() == psutil.STATUS_ZOMBIE)
