"""What a folder has to hold to be a dataset, and how its files are called."""

from pathlib import Path

import pytest

from schemas.dataset import Layout, NoDataset


def test_a_folder_that_no_run_has_begun(tmp_path: Path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NoDataset) as refused:
            Layout(root).require()
        said = str(refused.value)
        assert said.startswith(f"{root} is no songmill dataset (it has no _songmill/plan.json)")
        assert said.endswith("give a folder that `songmill curate` wrote")


def test_a_run_that_has_not_come_as_far_as_a_commit(tmp_path: Path):
    layout = Layout(tmp_path)
    layout.state.mkdir()
    layout.config.write_text("{}")
    with pytest.raises(NoDataset, match=f"^{tmp_path} holds no rows yet, .*: songmill curate {tmp_path} goes on with"):
        layout.require()


def test_a_dataset_is_taken_as_it_is(tmp_path: Path):
    layout = Layout(tmp_path)
    layout.state.mkdir()
    layout.plan.write_text("{}")
    layout.require()
    assert [path.name for path in layout.state.iterdir()] == ["plan.json"]


def test_files_are_named_from_the_root(tmp_path: Path):
    layout = Layout(tmp_path)
    assert layout.name_of(layout.feature_file("ssl", 7)) == "features/ssl/train-000007.parquet"
    with pytest.raises(ValueError, match="is not in the subpath of"):
        layout.name_of(tmp_path.parent / "elsewhere")
