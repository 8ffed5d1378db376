"""Fixtures shared by all tests: models and real audio, both from the hash-pinned model store."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

import training  # noqa: F401 - before anything computes with MKL, which then rounds here as in runs that are compared
from pipeline.models.store import ModelStore
from stages.base import Weights
from tests.support.command import ray_cluster
from tests.support.long import LONG_TESTS

# The first example pays for imports; how fast code is, benchmarks say.
settings.register_profile("songmill", deadline=None)
settings.load_profile("songmill")


LONGEST = (
    "test_curate",
    "test_small_profile",
    "test_train",
    "test_add_features",
    "test_quarantine",
    "test_report",
    "test_engine_contract",
    "test_explore_browser",
    "test_benchmark_curate",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that two processes end at about the same time."""
    if LONG_TESTS:  # they take as long as they take, up to an hour
        for item in items:
            item.add_marker(pytest.mark.timeout(3600))
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[dict[str, str]]:
    """What to set in the environment so that a command joins this session's Ray cluster: 2 CPUs, and the claim of a GPU.

    For commands that need workers; starting a cluster takes longer than most of them.
    """
    with ray_cluster("--num-gpus=1") as settings:
        yield settings


@pytest.fixture(scope="session")
def weights() -> Callable[..., Mapping[str, Weights]]:
    """`weights("whisper-base")` is what a stage's `setup` takes; missing entries are pulled."""

    def resolve(*names: str) -> Mapping[str, Weights]:
        store = ModelStore()
        return {name: store.pull(name) for name in names}

    return resolve


@pytest.fixture(scope="session")
def audio(weights: Callable[..., Mapping[str, Weights]]) -> Callable[[str, str], Path]:
    """`audio("speech-clips", "en/hello_world.wav")` is a real recording from the store."""

    def path(entry: str, name: str) -> Path:
        return weights(entry)[entry].path / name

    return path
