"""Restricts access to the server to its own pages, in a browser on this machine."""

import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_UNTRUSTED = "this server only answers its own pages: open the address that songmill explore printed"


class Guard:
    """Refuses requests with another Host header (DNS rebinding) or from other sites' pages; adds security headers."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """Wrap an application.

        Args:
            app: answers the requests that are let through.
            hosts: accepted values of the Host header, `name:port`.
        """
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        app = self._app if self._is_trusted(scope["method"], Headers(scope=scope)) else _REFUSAL
        return await app(scope, receive, with_headers)

    def _is_trusted(self, method: str, headers: Headers) -> bool:
        host = headers.get("host", "")
        if host not in self._hosts:
            return False
        reads = method in ("GET", "HEAD")
        origin = headers.get("origin")
        if origin is None:  # browsers send it with every POST; other clients have to know the token
            return reads or headers.get("sec-fetch-site", "same-origin") == "same-origin"
        return origin == f"http://{host}"


class Token:
    """A secret that the forms of this run's pages contain, and no other site knows."""

    def __init__(self) -> None:
        self.value = secrets.token_urlsafe(32)

    def fits(self, given: str) -> bool:
        """Whether a form sent the right token."""
        return secrets.compare_digest(self.value.encode(), given.encode())


_REFUSAL = PlainTextResponse(_UNTRUSTED, status_code=403)
