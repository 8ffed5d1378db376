"""The dataset card: what the hub and `datasets` read of it, and that nothing in the data can break it."""

from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset.card import cell, write_card
from pipeline.dataset.stats import collect_stats
from pipeline.planning.plan import Plan
from schemas.dataset import Layout
from tests.support.rows import row, write_rows

HEARD = {"text": "la", "language": "ja", "model": "whisper"}
HOSTILE = 'a | b\n# heading\n---\n<script>alert("x")</script> `code` {{ 7 * 7 }} [link](x)'


def carded(layout: Layout) -> DatasetCard:
    plan = Plan.model_validate_json(layout.store.get(layout.plan))
    write_card(layout, plan, collect_stats(layout))
    return DatasetCard.load(Path(layout.url) / "README.md")


def configs(card: DatasetCard) -> dict[str, str]:
    return {config["config_name"]: config["data_files"][0]["path"] for config in card.data.to_dict()["configs"]}


def test_datasets_loads_the_folder_by_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    songs = [row(i) for i in range(3)] + [row(9, "failed", "decode", "NotAudio", audio=None)]
    card = carded(write_rows(tmp_path / "songs", songs))
    assert configs(card) == {"tracks": "shards/*.parquet", "quarantine": "quarantine/*.parquet"}
    loaded = load_dataset(str(tmp_path / "songs"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["title"] == ["Song 0", "Song 1", "Song 2"]
    rejected = load_dataset(str(tmp_path / "songs"), "quarantine", split="train", cache_dir=str(tmp_path / "cache"))
    assert rejected["verdict"][0]["reason"] == "NotAudio"


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (["CC-BY-SA-4.0"], {"license": "cc-by-sa-4.0"}),
        (["ODC-By-1.0"], {"license": "odc-by"}),
        (["GPL-3.0-or-later"], {"license": "gpl-3.0"}),
        ([None], {"license": "unknown"}),
        (["CC-BY-4.0", "MIT"], {"license": "other", "license_name": "each-row-its-own"}),
        (["CC-BY-4.0", None], {"license": "other", "license_name": "each-row-its-own"}),
        (["Pixabay License"], {"license": "other", "license_name": "pixabay-license"}),
        (
            ["https://x.org/terms"],
            {"license": "other", "license_name": "see-link", "license_link": "https://x.org/terms"},
        ),
    ],
)
def test_the_hub_gets_its_own_name_of_a_license_that_all_rows_share(tmp_path, licenses, expected):
    data = carded(write_rows(tmp_path, [row(i, license=name) for i, name in enumerate(licenses)])).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected


def test_metadata_names_size_languages_and_task(tmp_path: Path):
    songs = [
        row(0, transcript=HEARD, language="no"),
        row(1, transcript={**HEARD, "language": "jw"}),
        row(2, language="klingon"),
    ]
    data = carded(write_rows(tmp_path / "Lieder: a 'test'", songs)).data.to_dict()
    assert data["pretty_name"] == "Lieder: a 'test'"
    assert data["language"] == ["ja", "jv", "no"]
    assert data["size_categories"] == ["n<1K"]
    assert data["task_categories"] == ["text-to-audio"]


def test_what_is_in_it_what_was_turned_away_and_what_it_lacks(tmp_path: Path):
    songs = [
        row(0, transcript=HEARD, vocals={"has_vocals": True, "model": "spleeter"}, flags=["bpm_octave"]),
        row(1, license=None, rhythm=None),
        row(2, license=None, source="jamendo"),
        row(3, "filtered", "quality", "min_bandwidth_hz"),
        row(4, "failed", "decode", "NotAudio", audio=None),
        row(5, "pending"),
    ]
    gates = {"quality": {"min_bandwidth_hz": 7000.0}}
    text = carded(write_rows(tmp_path, songs, gates=gates)).text
    for line in (
        "| unknown | 2 | 2.000 |",
        "| CC-BY-4.0 | 1 | 1.000 |",
        "| jamendo | 1 | 1.000 |",
        "| ja | 1 | 1.000 | transcribed |",
        "33 % of the hours are vocal music.",
        r"| filtered | quality | min\_bandwidth\_hz | 1 | 1.000 |",
        "| failed | decode | NotAudio | 1 | 0.000 |",
        "| vocals | vocals | by-hand | spleeter-2stems@ce091059e50b | vocals000000 |",
        r"| quality.min\_bandwidth\_hz | 7000.0 |",
        "- 2 of 3 songs have no licence.",
        "- 1 rows are pending: some stages have not run on them yet, so they have no final verdict.",
        "- `rhythm` is null in 1 of 3 songs.",
        "- `transcript` is null in 2 of 3 songs.",
        "- 1 songs are flagged `bpm_octave`.",
    ):
        assert line in text
    assert "1 were filtered out, 1 failed, 1 are pending" in text
    assert "languages that no transcript is in: en, de" in text
    assert "Stages that were not run: fingerprint, aesthetics" in text


def test_data_cannot_break_out_of_a_table_or_of_the_metadata(tmp_path: Path):
    songs = [row(0, license=HOSTILE, source=HOSTILE), row(1, "failed", "decode", HOSTILE)]
    card = carded(write_rows(tmp_path / "a # |b|", songs))
    assert card.data.to_dict()["license"] == "other"
    assert not [line for line in card.text.splitlines() if line.startswith(("# heading", "---", "<script"))]
    assert "<script>" not in card.text.replace(r"\<", "")
    told = [line for line in card.text.splitlines() if "alert" in line]
    assert [line.replace(r"\|", "").count("|") for line in told] == [4, 4, 6]  # licence, source, verdict


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_a_cell_is_one_line_and_has_no_bare_bar(text: str):
    made = cell(text)
    assert len(made.splitlines()) <= 1
    assert "|" not in made.replace("\\\\", "").replace(r"\|", "")


def test_a_dataset_without_kept_rows_has_a_card_too(tmp_path: Path):
    card = carded(write_rows(tmp_path, [row(0, "failed", "decode", "NotAudio", audio=None)]))
    assert configs(card) == {"quarantine": "quarantine/*.parquet"}
    assert "0 songs, 0.000 hours" in card.text
