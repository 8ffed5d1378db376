"""What a folder has to hold to be a dataset, and how its files are called."""

from pathlib import Path

import pytest

from schemas.dataset import Layout, NoDataset, folder_of, unit_of


def test_a_folder_that_no_run_has_begun(tmp_path: Path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NoDataset) as refused:
            Layout.at(root).require()
        said = str(refused.value)
        assert said.startswith(f"{root} is no songmill dataset (it has no _songmill/plan.json)")
        assert said.endswith("give a folder or a bucket's URL that `songmill curate` wrote")


def test_a_run_that_has_not_come_as_far_as_a_commit(tmp_path: Path):
    (tmp_path / "_songmill").mkdir()
    (tmp_path / "_songmill/config.json").write_text("{}")
    with pytest.raises(NoDataset, match=f"^{tmp_path} holds no rows yet, .*: songmill curate {tmp_path} goes on with"):
        Layout.at(tmp_path).require()


def test_a_dataset_is_taken_as_it_is(tmp_path: Path):
    (tmp_path / "_songmill").mkdir()
    (tmp_path / "_songmill/plan.json").write_text("{}")
    Layout.at(tmp_path).require()
    assert [path.name for path in (tmp_path / "_songmill").iterdir()] == ["plan.json"]


def test_files_are_named_from_the_root_wherever_that_is(tmp_path: Path):
    for place in (tmp_path, "s3://bucket/dataset"):
        layout = Layout.at(place)
        assert layout.feature_file("ssl", 7) == "features/ssl/train-000007.parquet"
        assert unit_of(layout.feature_file("ssl", 7)) == unit_of(layout.scan_file(7)) == 7
        assert folder_of(layout.shard_file(7)) == layout.shards
    assert unit_of("shards/notes.txt") is None


def test_another_url_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="ftp://host/dataset: a dataset is a folder, or a bucket by a URL with s3://"):
        Layout.at("ftp://host/dataset")
