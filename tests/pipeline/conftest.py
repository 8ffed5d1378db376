"""Datasets that tests of several commands begin with."""

from pathlib import Path

import pytest

from tests.support.played_dataset import PlayedDataset


@pytest.fixture
def played_dataset(tmp_path: Path) -> PlayedDataset:
    """One without rows yet, whose runs take no time."""
    return PlayedDataset(tmp_path / "dataset")
