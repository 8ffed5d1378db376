"""A server for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.s3_server import s3_server


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of an S3 server; its credentials are in the environment."""
    with s3_server() as url:
        yield url
