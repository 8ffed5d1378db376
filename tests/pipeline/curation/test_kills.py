"""The driver, killed 160 times; `benchmarks/RESULTS.md` has the figures."""

import pytest

from benchmarks.kills import kill_often


@pytest.mark.ray
@pytest.mark.slow
def test_every_run_that_completes_after_kills_leaves_a_sound_dataset(tmp_path):
    told = kill_often(tmp_path, at_random=100, injected=60, seed=0)
    assert sum(told["kills"].values()) == 160
