"""Tests say what they need by markers, and get nothing else: so `make test-fast` stays fast, and runs everywhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from pipeline.models.store import ModelStore

# Commands in other processes join what this names, and their refusal tells the name.
_NO_CLUSTER = "the.test.lacks.the.marker.ray.invalid:1"


@contextmanager
def refuse_what_is_not_marked(item: pytest.Item) -> Iterator[None]:
    """During a test, Ray and the models of the user's store are there for tests that are marked so."""
    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("ray"):
            patch.setenv("RAY_ADDRESS", _NO_CLUSTER)
            patch.setattr(ray, "init", _refused("starts Ray", "ray"))
        if not item.get_closest_marker("models"):
            usual = ModelStore().root
            for name in ("resolve", "pull"):
                patch.setattr(ModelStore, name, _elsewhere_only(getattr(ModelStore, name), usual))
        yield


def _elsewhere_only(method: Callable[..., Any], usual: Any) -> Callable[..., Any]:
    """The method, of stores that are made for a test alone."""

    def called(store: ModelStore, *arguments: Any, **options: Any) -> Any:
        found = method(store, *arguments, **options)
        if store.root == usual:
            _refused(f"opens the model {arguments[0]}", "models")()
        return found

    return called


def _refused(does: str, marker: str) -> Callable[..., None]:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail(f"the test {does}: mark it with pytest.mark.{marker}")

    return refuse
