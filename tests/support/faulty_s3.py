"""A proxy before an S3 server that does to requests what servers and networks do on bad days."""

import http.client
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

# What happens to a request: the server answers 500 or 503, the connection breaks before it or after it has acted, no
# answer comes, half of an answer comes, or one bit of it is wrong.
REFUSED = ("500", "503", "reset", "hang")
ACTED = ("lost", "hang after")
SPOILT = ("truncated", "flipped")


@dataclass
class FaultyS3:
    """A proxy.

    Attributes:
        url: where it listens.
        planned: faults of the next requests, in order; "pass" for none.
        share: of other requests that meet a random fault.
        kinds: of these.
        delay_s: that every request takes more.
        seen: method and path of every request.
    """

    url: str
    planned: list[str] = field(default_factory=list)
    share: float = 0.0
    kinds: tuple[str, ...] = ()
    delay_s: float = 0.0
    seen: list[tuple[str, str]] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    lock: Lock = field(default_factory=Lock)

    def fault(self, method: str, path: str) -> str:
        """What happens to a request."""
        with self.lock:
            self.seen.append((method, path))
            if self.planned:
                return self.planned.pop(0)
            return self.dice.choice(self.kinds) if self.dice.random() < self.share else "pass"


@contextmanager
def faulty_s3(behind: str) -> Iterator[FaultyS3]:
    """A proxy on loopback for the server at the URL `behind`."""
    server_at = urlsplit(behind)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            fault = proxy.fault(self.command, self.path)
            time.sleep(proxy.delay_s)
            if fault in REFUSED:
                self._refuse(fault)
                return
            status, headers, answer = self._forwarded(body)
            if fault in ACTED:
                self._refuse(fault)
                return
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            declared = next((value for name, value in headers if name.lower() == "content-length"), str(len(answer)))
            self.send_header("Content-Length", declared if self.command == "HEAD" else str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(_spoilt(answer, fault, proxy.dice))
            if fault == "truncated":
                self._break_off()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

        def _forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(server_at.hostname or "", server_at.port, timeout=30)
            try:
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                answer = connection.getresponse()
                return answer.status, answer.getheaders(), answer.read()
            finally:
                connection.close()

        def _refuse(self, fault: str) -> None:
            if fault.startswith("hang"):
                time.sleep(0.8)
            if fault in ("500", "503"):
                self.send_response(int(fault))
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self._break_off()

        def _break_off(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that went away is what this is for."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy = FaultyS3(f"http://127.0.0.1:{server.server_address[1]}")
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


def _spoilt(answer: bytes, fault: str, chance: random.Random) -> bytes:
    if fault == "truncated":
        return answer[: len(answer) // 2]
    if fault == "flipped" and answer:
        place = chance.randrange(len(answer))
        return answer[:place] + bytes([answer[place] ^ 1]) + answer[place + 1 :]
    return answer
