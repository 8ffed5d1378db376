"""The dataset card (README.md): content, size, licences, models, thresholds and known gaps of a dataset."""

import re
from importlib import resources
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

import jinja2
import yaml

from pipeline.dataset.hub_metadata import front_matter
from pipeline.dataset.stats import Stats
from pipeline.ingest.licenses import UNKNOWN
from pipeline.planning.plan import Plan
from schemas.dataset import FEATURES, Layout
from schemas.storage.options import scheme
from stages.registry import ENGINES
from stages.text.language import LANGUAGES

_VALUES_SHOWN = 40


def write_card(layout: Layout, plan: Plan, stats: Stats) -> None:
    """Write the README.md of a dataset; its front matter makes the folder loadable as a Hugging Face dataset."""
    template = resources.files("pipeline.dataset").joinpath("card.md.txt").read_text("utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701
    environment.filters |= {"cell": cell, "hours": "{:.3f}".format, "size": _size}
    matter = front_matter(layout, stats, plan.columns)
    text = environment.from_string(template).render(
        front_matter=yaml.safe_dump(matter, sort_keys=False, allow_unicode=True),
        configs=[config["config_name"] for config in matter["configs"]],
        plan=plan,
        stats=stats,
        url=layout.url if scheme(layout.url) else None,
        name=PurePosixPath(layout.url).name,
        listed={title: _listed(stats, column) for title, column in (("Licences", "license"), ("Sources", "source"))},
        languages={title: _listed(stats, column) for title, column in _LANGUAGES.items()},
        gaps=_gaps(plan, stats),
        version=version("songmill"),
    )
    layout.store.put(layout.card, text.encode())


_LANGUAGES = {"transcribed": "transcript.language", "declared": "language"}


def cell(value: Any) -> str:
    """Escape a value for a Markdown table cell: on one line, without active Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|#!~&$])", r"\\\1", " ".join(str(value).split()))


def _listed(stats: Stats, column: str) -> list[tuple[str, int, float]]:
    """Values of a column with their rows and hours; values after the `_VALUES_SHOWN` most common are summed up."""
    hours = stats.hours_of.get(column, {})
    found = [(value, rows, hours.get(value, 0.0)) for value, rows in stats.counts.get(column, {}).items()]
    if rest := found[_VALUES_SHOWN:]:
        together = (f"{len(rest)} more", sum(rows for _, rows, _ in rest), sum(h for *_, h in rest))
        return [*found[:_VALUES_SHOWN], together]
    return found


def _gaps(plan: Plan, stats: Stats) -> list[str]:
    """Known gaps: what a reader might expect in the dataset but will not find, one sentence each."""
    kept = stats.rows["kept"]
    gaps = []
    if unknown := stats.counts.get("license", {}).get(UNKNOWN):
        gaps.append(f"{unknown} of {kept} songs have no licence.")
    if waiting := stats.rows.get("pending"):
        gaps.append(f"{waiting} rows are pending: some stages have not run on them yet, so they have no final verdict.")
    gaps += [
        f"`{column}` is null in {nulls} of {kept} songs." for column, nulls in sorted(stats.nulls.items()) if nulls
    ]
    heard = stats.counts.get("transcript.language", LANGUAGES)
    if never := [code for code in LANGUAGES if code not in heard]:
        gaps.append(f"Supported lyrics languages that no transcript is in: {', '.join(never)}.")
    made = {stage.name for stage in plan.columns.values()}
    if absent := [name for name in ENGINES if name not in made]:
        gaps.append(f"Stages that were not run: {', '.join(absent)}.")
    if absent := [name for name in FEATURES if name in plan.columns and f"features/{name}" not in stats.sizes]:
        gaps.append(f"Features that were planned but are missing: {', '.join(absent)}.")
    if plan.dedup is None:
        gaps.append("Duplicates were not searched for.")
    gaps += [f"{rows} songs are flagged `{flag}`." for flag, rows in stats.counts.get("flags", {}).items()]
    gaps.append("The audio files are not part of this dataset: `uri` is the location of each when it was curated.")
    return gaps


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.1f} TB"
