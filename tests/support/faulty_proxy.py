"""A proxy before a real server that does to chosen requests what servers and networks do on bad days."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Proxy:
    """Where it listens, which fault the next chat requests meet ("pass" when there is none), and what was asked."""

    url: str
    faults: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def faulty_proxy(behind: str) -> Iterator[Proxy]:
    """A proxy on loopback; `behind` is the server's address with "/v1".

    Faults: "429" (try again at once), "500", "slow" (no answer for two seconds), "cut" (the real answer, its text cut
    in half), "chatter" (the real answer without its text).
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*_forward(behind + self.path.removeprefix("/v1"), self.headers, None))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            proxy.asked.append(json.loads(body))
            fault = proxy.faults.pop(0) if proxy.faults else "pass"
            if fault in ("429", "500"):
                self._answer(int(fault), b'{"error": {"message": "a bad day"}}', {"Retry-After": "0.05"})
                return
            if fault == "slow":
                time.sleep(2)
                return
            status, answer = _forward(behind + self.path.removeprefix("/v1"), self.headers, body)
            self._answer(status, _spoilt(answer, fault) if fault != "pass" else answer)

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}/v1")
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


def _forward(url: str, headers: Any, body: bytes | None) -> tuple[int, bytes]:
    passed = {name: headers[name] for name in ("Authorization", "Content-Type") if headers[name]}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, passed)) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def _spoilt(answer: bytes, fault: str) -> bytes:
    told = json.loads(answer)
    message = told["choices"][0]["message"]
    message["content"] = {
        "cut": message["content"][: len(message["content"]) // 2],
        "chatter": "What a lovely song!",
    }[fault]
    return json.dumps(told).encode()
