"""`songmill inspect --html`: a dataset as one self-contained page with audio, which opens from disk, offline."""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel

from pipeline.dataset.stats import collect_stats, connect
from pipeline.errors import DataProblem, UsageProblem
from pipeline.pages.excerpts import SHORTEST_S, Excerpt, make_excerpt, stored_excerpts
from pipeline.pages.funnel import funnel
from pipeline.pages.histograms import histograms
from pipeline.pages.row import row_view
from pipeline.pages.sampling import fetch, sample
from pipeline.pages.templates import asset, environment
from pipeline.pages.thresholds import dataset_gates
from pipeline.planning.gates import Gate
from pipeline.planning.plan import Plan
from schemas.dataset import Layout
from schemas.files import write_durably
from schemas.storage.location import absolute

LIMIT_BYTES = 20_000_000
_SECONDS, _KBPS = 30.0, 32  # of an excerpt made on the spot; a hundred of them fit into the limit
_SHRINK = 0.92

Watch = Callable[[int, int], None]


class Report(BaseModel):
    """What was written.

    Attributes:
        file: the page.
        bytes: its size.
        rows: rows shown, by status.
        heard: number of rows with audio.
        remark: what the reader of the page should know about it.
    """

    file: Path
    bytes: int
    rows: dict[str, int]
    heard: int
    remark: str | None


@dataclass(frozen=True)
class _Shown:
    """A row on the page."""

    view: Mapping[str, Any]
    excerpt: Excerpt


def write_report(
    layout: Layout,
    out: Path,
    *,
    rows: int = 100,
    seed: int = 0,
    extra_rows: Sequence[str] = (),
    extra_title: str = "Rows asked for",
    gates: Sequence[Gate] | None = None,
    limit_bytes: int = LIMIT_BYTES,
    watch: Watch = lambda _done, _total: None,
) -> Report:
    """Write the page of a dataset.

    Args:
        layout: the dataset.
        out: the HTML file.
        rows: size of the sample, at most; see `pipeline.pages.sampling`.
        seed: seed of the sample.
        extra_rows: ids of rows to show above the sample, in this order.
        extra_title: heading of these rows.
        gates: thresholds to show with the figures; by default the dataset's own.
        limit_bytes: maximum size of the page; sounds are shortened until it fits.
        watch: called with how many rows have their sound, of how many.

    Raises:
        NoDataset: the folder does not contain a dataset.
        DataProblem: the page cannot be written.
        UsageProblem: an extra row is not in the dataset.
    """
    stats = collect_stats(layout)
    if not stats.rows["total"]:
        raise DataProblem(f"{layout.url} holds no rows yet")
    plan = Plan.model_validate_json(layout.store.get(layout.plan))
    connection, gates = connect(layout), dataset_gates(layout) if gates is None else gates
    extra = fetch(connection, extra_rows)
    if missing := {*extra_rows} - {row["row_id"] for row in extra}:
        raise UsageProblem(f"{layout.url} has no row {', '.join(sorted(missing))}")
    sampled = fetch(connection, [i for i in sample(connection, rows, seed) if i not in {*extra_rows}])
    excerpts = _excerpts(layout, [*extra, *sampled], watch)
    shown = [_Shown(row_view(row, gates), excerpts[row["row_id"]]) for row in [*extra, *sampled]]
    page = _Page(
        {
            "name": PurePath(absolute(layout.url)).name,
            "plan": plan,
            "stats": stats,
            "steps": funnel(plan, stats.verdicts, stats.rows["total"]),
            "histograms": histograms(connection, gates),
            "seed": seed,
        },
        extra_title,
        len(extra),
    )
    text, remark = _fitted(page, shown, limit_bytes)
    _write(out, text)
    counts = Counter(one.view["verdict"]["status"] for one in shown)
    return Report(file=out, bytes=len(text), rows=counts, heard=_with_audio(shown), remark=remark)


def _excerpts(layout: Layout, rows: Sequence[Mapping[str, Any]], watch: Watch) -> dict[str, Excerpt]:
    excerpts = stored_excerpts(layout, [row["row_id"] for row in rows])
    for done, row in enumerate(rows):
        watch(done, len(rows))
        if row["row_id"] not in excerpts:
            excerpts[row["row_id"]] = make_excerpt(row, _SECONDS, _KBPS)
    watch(len(rows), len(rows))
    return excerpts


@dataclass(frozen=True)
class _Page:
    """Everything on the page except its rows."""

    facts: Mapping[str, Any]
    extra_title: str
    extra: int

    def render(self, shown: Sequence[_Shown], remark: str | None) -> bytes:
        """The page with its rows: extra ones first, then the sample by status."""
        styles, script = asset("pages.css") + asset("report.css"), asset("player.js")
        rows = [(one.view, one.excerpt.sound()) for one in shown]
        sections = [(self.extra_title, rows[: self.extra])] if self.extra else []
        by_status = groupby(rows[self.extra :], lambda row: row[0]["verdict"]["status"])
        sections += [(f"{status.capitalize()} rows", list(group)) for status, group in by_status]
        text = (
            environment()
            .get_template("report.html")
            .render(
                **self.facts,
                sections=sections,
                shown={view["row_id"] for view, _ in rows},
                remark=remark,
                styles=styles,
                script=script,
                allowed_style=_source(styles),
                allowed_script=_source(script),
            )
        )
        return text.encode()


def _source(text: str) -> str:
    """The Content-Security-Policy source for exactly this text: nothing else may run, whatever a title contains."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _fitted(page: _Page, shown: Sequence[_Shown], limit_bytes: int) -> tuple[bytes, str | None]:
    """The page, with sounds shortened until it fits, and a remark about that."""
    text = page.render(shown, None)
    audio = sum(one.excerpt.page_bytes for one in shown)
    share = (limit_bytes - (len(text) - audio)) / max(_with_audio(shown), 1)
    remark = None
    while len(text) > limit_bytes and share > 0 and _longest(shown) > SHORTEST_S:
        shown = [_Shown(one.view, one.excerpt.at_most(int(share))) for one in shown]
        remark = f"Sounds are cut to at most {_longest(shown):.0f} s to keep the page under {_mb(limit_bytes)} MB."
        text = page.render(shown, remark)
        share *= _SHRINK
    if len(text) > limit_bytes:
        remark = f"The page is larger than {_mb(limit_bytes)} MB; show fewer rows."
    return text, remark


def _with_audio(shown: Iterable[_Shown]) -> int:
    return sum(one.excerpt.data is not None for one in shown)


def _longest(shown: Iterable[_Shown]) -> float:
    return max((one.excerpt.duration_s for one in shown), default=0.0)


def _mb(size: int) -> str:
    return f"{size / 1e6:g}"


def _write(out: Path, text: bytes) -> None:
    try:
        write_durably(out, text)
    except OSError as error:
        raise DataProblem(f"{out}: {error.strerror or error}") from error
