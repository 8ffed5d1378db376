"""A server for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.azure_server import azure_server
from tests.support.s3_server import s3_server


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of an S3 server; its credentials are in the environment."""
    with s3_server() as url:
        yield url


@pytest.fixture(scope="session")
def azure() -> Iterator[str]:
    """URL of an Azure Blob server, likewise."""
    with azure_server() as url:
        yield url
