"""What tests of training commands share."""

from collections.abc import Iterator
from typing import Any

import pytest

# What a step's memory does not depend on. Of the songs it needs only widths and the longest, which are arguments.
_NO_MATTER = ("steps", "seed", "log_every", "save_every", "validate_every", "samples", "objective", "optimizer")


@pytest.fixture(scope="session", autouse=True)
def alike_steps_are_estimated_once() -> Iterator[None]:
    """Runs that differ in nothing that memory depends on share an estimate, which takes half of a run of six steps."""
    from pipeline.train import dit  # what trains takes seconds to import

    known: dict[object, Any] = {}

    def estimated(config: Any, transformer: Any, *sizes: Any) -> Any:
        apart: Any = {**dict.fromkeys(_NO_MATTER, True), "data": {"datasets", "where"}}
        key = (config.model_dump_json(exclude=apart), *map(repr, sizes))
        if key not in known:
            known[key] = really(config, transformer, *sizes)
        return known[key]

    really = dit.estimate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dit, "estimate", estimated)
        yield
