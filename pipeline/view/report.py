"""`songmill inspect --html`: a dataset as one page that opens from disk, to be seen and heard without a network."""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
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
        heard: rows that have a sound.
        remark: what the reader of the page should know of it.
    """

    file: Path
    bytes: int
    rows: dict[str, int]
    heard: int
    remark: str | None


@dataclass(frozen=True)
class _Shown:
    """A row of the page."""

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
        rows: sampled rows, at most; see `pipeline.pages.sampling`.
        seed: another one samples others.
        extra_rows: ids of rows to show above the sample, in this order.
        extra_title: what they are.
        gates: thresholds that figures are shown against; by default the dataset's own.
        limit_bytes: of the page; longer sounds are cut until they fit.
        watch: told how many rows of how many have got their sound.

    Raises:
        NoDataset: the folder holds none.
        DataProblem: the page cannot be written.
        UsageProblem: an extra row is not in the dataset.
    """
    stats = collect_stats(layout)
    if not stats.rows["total"]:
        raise DataProblem(f"{layout.root} holds no rows yet")
    plan = Plan.model_validate_json(layout.plan.read_bytes())
    connection, gates = connect(layout), dataset_gates(layout) if gates is None else gates
    extra = fetch(connection, extra_rows)
    if missing := {*extra_rows} - {row["row_id"] for row in extra}:
        raise UsageProblem(f"{layout.root} has no row {', '.join(sorted(missing))}")
    sampled = fetch(connection, [i for i in sample(connection, rows, seed) if i not in {*extra_rows}])
    excerpts = _excerpts(layout, [*extra, *sampled], watch)
    shown = [_Shown(row_view(row, gates), excerpts[row["row_id"]]) for row in [*extra, *sampled]]
    page = _Page(
        {
            "name": layout.root.resolve().name,
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
    heard = sum(one.excerpt.data is not None for one in shown)
    counts = Counter(one.view["verdict"]["status"] for one in shown)
    return Report(file=out, bytes=len(text), rows=counts, heard=heard, remark=remark)


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
    """Everything of the page but its rows."""

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
    """What a Content-Security-Policy calls this very text: nothing else may run, whatever a title tries."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _fitted(page: _Page, shown: Sequence[_Shown], limit_bytes: int) -> tuple[bytes, str | None]:
    """The page, with sounds cut until it fits; and what to say of it."""
    text = page.render(shown, None)
    audio = sum(one.excerpt.page_bytes for one in shown)
    share = (limit_bytes - (len(text) - audio)) / max(_heard(shown), 1)
    remark = None
    while len(text) > limit_bytes and share > 0 and _longest(shown) > SHORTEST_S:
        shown = [_Shown(one.view, one.excerpt.at_most(int(share))) for one in shown]
        remark = (
            f"Sounds are cut to {_longest(shown):.0f} s at most, so that the page stays under {_mb(limit_bytes)} MB."
        )
        text = page.render(shown, remark)
        share *= _SHRINK
    if len(text) > limit_bytes:
        remark = f"The page is larger than {_mb(limit_bytes)} MB; show fewer rows."
    return text, remark


def _heard(shown: Iterable[_Shown]) -> int:
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
