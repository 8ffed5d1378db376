"""An S3 server on loopback: moto's, whose objects are in memory."""

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

BUCKET = "music"
SECRET = "hush-0123456789"  # moto checks no signatures


@contextmanager
def s3_server() -> Iterator[str]:
    """A server with an empty bucket, and credentials for it in the environment.

    Yields:
        Its URL.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(url).items():
            patch.setenv(name, value)
        _create_bucket(url)
        try:
            yield url
        finally:
            server.stop()


def environment(url: str) -> dict[str, str]:
    """What a process needs to reach the server."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
    }


def _create_bucket(url: str) -> None:
    request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
    urllib.request.urlopen(request).close()


def keys(prefix: str = "") -> list[str]:
    """Every object of the bucket below a prefix."""
    return [meta["path"] for chunk in S3Store(BUCKET).list(prefix or None) for meta in chunk]
