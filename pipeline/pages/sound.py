"""What a page plays for a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.pages.timeline import within


@dataclass(frozen=True)
class Sound:
    """The audio of a row, or the reason why there is none.

    Attributes:
        src: a data: URI, or an address on the page's own server; None where there is nothing to hear.
        start_s: where in the song it begins.
        length_s: how long it is.
        peaks: bars of its waveform (see `pipeline.pages.waveform`).
        peaks_src: where to ask for them as a JSON list once the row is seen, for a page that does not bring them.
        remark: a sentence for the listener: what is heard, or why nothing is.
    """

    src: str | None
    start_s: float = 0.0
    length_s: float = 0.0
    peaks: Sequence[float] = field(default_factory=tuple)
    peaks_src: str | None = None
    remark: str | None = None

    @property
    def end_s(self) -> float:
        """Where in the song it ends."""
        return self.start_s + self.length_s

    def of(self, view: Mapping[str, Any]) -> dict[str, Any]:
        """A row's view (see `pipeline.pages.row.row_view`) with the timeline of what is heard."""
        timeline = within(view["timeline"], self.start_s, self.length_s) if self.src else view["timeline"]
        return {**view, "timeline": timeline}
