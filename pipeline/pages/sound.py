"""The audio that a page plays for a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.pages.timeline import within


@dataclass(frozen=True)
class Sound:
    """The audio of a row, or the reason why there is none.

    Attributes:
        src: a data: URI, or an address on the page's own server; None if there is no audio.
        start_s: its start in the song, in seconds.
        length_s: its length in seconds.
        peaks: bars of its waveform (see `pipeline.pages.waveform`).
        peaks_src: address that serves them as a JSON list, for pages that load them once the row is visible.
        remark: a sentence for the listener: what this is, or why there is no audio.
    """

    src: str | None
    start_s: float = 0.0
    length_s: float = 0.0
    peaks: Sequence[float] = field(default_factory=tuple)
    peaks_src: str | None = None
    remark: str | None = None

    @property
    def end_s(self) -> float:
        """Its end in the song, in seconds."""
        return self.start_s + self.length_s

    def of(self, view: Mapping[str, Any]) -> dict[str, Any]:
        """A row's view (see `pipeline.pages.row.row_view`) with its timeline limited to this audio."""
        timeline = within(view["timeline"], self.start_s, self.length_s) if self.src else view["timeline"]
        return {**view, "timeline": timeline}
