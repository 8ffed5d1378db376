"""The dataset card: what is in it, how much, under which licences, made by which models and thresholds."""

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from pipeline.ledger import write_durably
from pipeline.plan import Plan
from pipeline.stats import Stats
from schemas.dataset import FEATURES, Layout


def write_card(layout: Layout, plan: Plan, stats: Stats) -> None:
    """Write README.md of a dataset; its front matter makes the folder a Hugging Face dataset."""
    template = resources.files("pipeline").joinpath("card.md.txt").read_text("utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701
    text = environment.from_string(template).render(
        front_matter=yaml.safe_dump(_front_matter(layout, stats), sort_keys=False, allow_unicode=True),
        plan=plan,
        stats=stats,
        name=layout.root.name,
    )
    write_durably(layout.card, text.encode())


def _front_matter(layout: Layout, stats: Stats) -> dict[str, Any]:
    configs = [{"config_name": "tracks", "default": True, "data_files": "shards/*.parquet"}]
    configs += [
        {"config_name": name, "data_files": f"features/{name}/*.parquet"}
        for name in FEATURES
        if _has_files(layout.features(name))
    ]
    if _has_files(layout.quarantine):
        configs.append({"config_name": "quarantine", "data_files": "quarantine/*.parquet"})
    languages = [code for code in stats.counts.get("transcript.language", {}) if code]
    return {
        "license": "other",  # each row carries its own
        **({"language": languages} if languages else {}),
        "tags": ["music", "songmill"],
        "configs": configs,
    }


def _has_files(folder: Path) -> bool:
    return any(folder.glob("*.parquet"))
