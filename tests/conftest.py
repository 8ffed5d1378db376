"""What all tests share: markers and order, the models and recordings of the pinned store, Ray, the browser."""

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from playwright.sync_api import Browser

import training  # noqa: F401 - before anything computes with MKL, which then rounds here as in runs that are compared
from pipeline.models.store import ModelStore
from stages.base import Weights
from tests.support.browser import launched
from tests.support.command import ray_cluster
from tests.support.needs import refuse_what_is_not_marked

# The first example pays for imports; how fast code is, benchmarks say.
settings.register_profile("songmill", deadline=None)
settings.load_profile("songmill")

# Whoever asks for one of these fixtures, also through another fixture, has the marker without saying so.
MARKERS = {"weights": "models", "audio": "models", "browser": "browser", "shared_cluster": "ray"}
# So have the tests of a file that computes with networks, random ones too: it takes them seconds.
NETWORKS = {
    "torch",
    *(f"tests.support.{name}" for name in ("engines", "random_checkpoints", "tiny_checkpoint", "tiny_qwen_omni")),
}
SLOW_S = 3600

# Those that wait for Ray and those that compute by turns: two processes that wait at the same time leave cores idle.
LONGEST = (
    "test_train",
    "test_small_profile",
    "test_engine_contract",
    "test_worker_deaths",
    "test_trainer",
    "test_gpu_placement",
    "test_transcript_openai",
    "test_mutations",
    "test_autoencoder_training",
    "test_curate",
    "test_speaker_training",
    "test_cold_start",
    "test_transcript",
    "test_ui",
    "test_train_from_audio",
    "test_learning",
    "test_interrupts",
    "test_apply_thresholds",
)


@pytest.hookimpl(tryfirst=True)  # markers have to be there when pytest chooses by them
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they use; the longest files come first, so that all processes end at about the same time."""
    for item in items:
        for fixture in MARKERS.keys() & {*getattr(item, "fixturenames", ())}:
            item.add_marker(MARKERS[fixture])
        if _computes_with_networks(item.path):
            item.add_marker("models")
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_S))
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that compute with networks are not even imported where such tests are not wanted: it takes seconds."""
    unwanted = "not models" in config.option.markexpr and collection_path.match("test_*.py")
    return True if unwanted and _computes_with_networks(collection_path) else None


@cache
def _computes_with_networks(file: Path) -> bool:
    """Whether a test file imports one of `NETWORKS`, or a name of one."""
    imported: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return bool(imported & NETWORKS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that starts Ray or opens a model without being marked so fails, fast or not."""
    with refuse_what_is_not_marked(item):
        return (yield)


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[dict[str, str]]:
    """What to set in the environment for a command to join this session's Ray cluster: two CPUs, a GPU by its claim.

    For commands that need workers; starting a cluster takes longer than most of them.
    """
    with ray_cluster("--num-gpus=1") as settings:
        yield settings


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; each test opens a context of its own."""
    with launched() as browser:
        yield browser


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
