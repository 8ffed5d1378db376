"""Datasets that several kinds of training read."""

from pathlib import Path

import pytest

from tests.support.toy_dataset import write_dataset


@pytest.fixture(scope="session")
def short_toy_songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four random songs of four to eight seconds."""
    return write_dataset(tmp_path_factory.mktemp("toy") / "songs", 24, ssl={"whisper_base": 12}, frames=(40, 90))
