"""Custom components of the page: a window on a waveform, and two takes to compare."""

from pathlib import Path
from typing import Any

import gradio as gr
import torch
from torch import Tensor

BARS = 220

_ASSETS = Path(__file__).parent / "assets"


def repaint_window() -> gr.HTML:
    """A waveform to draw a window on.

    Its value is `{peaks, duration, start, end}`, times in seconds, or None without a source. The user's
    changes are `input` events.
    """
    return _component("window", value=None, elem_id="window")


def take_decks() -> gr.HTML:
    """A player for two takes, A and B.

    Its value is the list of takes, oldest first, each as `{title, name, file, peaks, ...}`. A new take
    becomes A, and the one played before becomes B. The event `source` names the take to use as a source.
    """
    return _component("takes", value=[], elem_id="takes", sides=["A", "B"])


def peaks(waveform: Tensor) -> list[float]:
    """Bar heights of a waveform [channels, samples], `BARS` values in 0..1 relative to the highest."""
    heights = waveform.abs().amax(dim=0)
    bars = torch.nn.functional.adaptive_max_pool1d(heights[None, None], BARS)[0, 0]
    return [round(bar, 3) for bar in (bars / bars.max().clamp(min=1e-9)).tolist()]


def _component(name: str, value: Any, elem_id: str, **template: Any) -> gr.HTML:
    return gr.HTML(
        value=value,
        html_template=_asset(f"{name}.html"),
        css_template=_asset("waveforms.css"),
        js_on_load=_asset("bars.js") + _asset(f"{name}.js"),
        apply_default_css=False,
        elem_id=elem_id,
        **template,
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
