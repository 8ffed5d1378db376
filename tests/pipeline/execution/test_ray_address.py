"""Addresses where no Ray cluster answers; that connecting to one works, the runs of `test_curate` show."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.execution import ray_address
from pipeline.execution.ray_address import Unreachable, reach
from tests.support.audio import tone, write
from tests.support.command import asked


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """A port whose listener never answers, or gives one answer to everybody."""
    with socket.create_server(("", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(64)
                    connection.sendall(answer or b"")

        if answer is not None:
            threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def test_a_port_where_nothing_listens(closed_port):
    with pytest.raises(Unreachable, match=f"at 127.0.0.1:{closed_port}: Connection refused; .* unset RAY_ADDRESS"):
        reach(f"127.0.0.1:{closed_port}")


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.0 400 Bad Request\r\n\r\n"])
def test_a_port_where_something_else_listens(answer, monkeypatch):
    monkeypatch.setattr(ray_address, "_TIMEOUT_S", 0.5)
    with listening(answer) as port, pytest.raises(Unreachable, match="another service than Ray listens there"):
        reach(f"127.0.0.1:{port}")


def test_a_name_that_nobody_knows():
    with pytest.raises(Unreachable, match=r"at no\.such\.host\.invalid:6379: "):
        reach("no.such.host.invalid:6379")


@pytest.mark.parametrize("address", ["head", "head:port", "head:99999", ""])
def test_what_is_no_address(address):
    with pytest.raises(Unreachable, match=rf"no Ray cluster answers at {address}: "):
        reach(address)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_addresses_of_other_services(address):
    with pytest.raises(Unreachable, match=r"Ray Client and the job server are not supported; .* head's HOST:PORT"):
        reach(address)


def test_any_cluster_where_none_runs(monkeypatch):
    def none(_: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray_address, "canonicalize_bootstrap_address", none)
    with pytest.raises(Unreachable, match="at auto: no cluster runs on this machine"):
        reach("auto")


def test_the_command_tells_in_one_sentence(closed_port, tmp_path: Path, monkeypatch):
    (tmp_path / "songs").mkdir()
    write(tmp_path / "songs" / "a.wav", tone(440, 1))
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    said = asked("curate", tmp_path / "songs", "--out", tmp_path / "dataset", "--stages", "decode", code=1)
    assert said.startswith(f"error: no Ray cluster answers at 127.0.0.1:{closed_port}: Connection refused")
    assert len(said.splitlines()) == 1
