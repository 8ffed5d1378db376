"""The pages' templates; everything that comes from data is escaped."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import jinja2

from pipeline.pages.row import clock

_ASSETS = Path(__file__).parent / "assets"


@cache
def environment() -> jinja2.Environment:
    """The environment for templates in `assets/`; `row.html` has the macro `row_card(row, sound)`."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(clock=clock, figure=figure, ticks=ticks)
    return made


def asset(name: str) -> str:
    """The text of a style sheet or a script."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def figure(value: float) -> str:
    """A number for a reader: four significant digits, with thousands separators."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("e-0", "e-")


def ticks(times: Sequence[float], window: Mapping[str, float]) -> str:
    """Times as vertical strokes of an SVG path, in a box of 1000 x 100 that spans `window` {start_s, length_s}."""
    start_s, length_s = window["start_s"], window["length_s"]
    return "".join(f"M{(time - start_s) / length_s * 1000:.1f} 0v100" for time in times)
