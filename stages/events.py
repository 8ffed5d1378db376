"""Sound events that tell what a recording is: a concert, applause, talk, singing."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas import columns
from stages import base, pcm
from stages.nets.yamnet import RATE_HZ, YamNet

# AudioSet classes of each event.
_APPLAUSE = ("Applause", "Clapping")
_EVENTS = {
    "live": (*_APPLAUSE, "Cheering", "Crowd", "Whoop"),
    "applause": _APPLAUSE,
    "speech": (
        "Speech",
        "Child speech, kid speaking",
        "Conversation",
        "Narration, monologue",
        "Speech synthesizer",
    ),
    "singing": (
        "Singing",
        "Vocal music",
        "Choir",
        "Yodeling",
        "Chant",
        "Mantra",
        "Child singing",
        "Synthetic singing",
        "Rapping",
        "Humming",
    ),
}


class EventsParams(base.Params):
    """How the probabilities of a track's patches are reduced to one value.

    Attributes:
        audience_quantile: `live` and `applause` are this quantile over all patches, because an audience is heard only
            for a few seconds, before and after the music.
    """

    audience_quantile: float = 0.95


class Events(base.Stage):
    """YAMNet over patches of 0.96 s, one every 0.48 s.

    An event's probability in a patch is the highest one among its AudioSet classes. `live` (applause, cheering, crowd)
    and `applause` are a high quantile over the patches, `speech` and `singing` the mean.
    """

    name = "events"
    type = columns.EVENTS
    reads = {"pcm": pcm.PCM}
    Params = EventsParams

    @property
    def models(self) -> tuple[str, ...]:
        """YAMNet, quantised to 8 bits."""
        return ("yamnet",)

    def setup(self, weights: Mapping[str, base.Weights]) -> None:
        """Load the network and look up the classes of each event."""
        super().setup(weights)
        self._net = YamNet(weights["yamnet"].path)
        self._classes = {event: [self._net.classes.index(name) for name in names] for event, names in _EVENTS.items()}

    def process(self, track: base.Track) -> dict[str, Any]:
        """Measure the `pcm` column."""
        probabilities = self._net(pcm.mono(track["pcm"], RATE_HZ))
        patches = {event: probabilities[:, classes].max(axis=1) for event, classes in self._classes.items()}
        return self.own(
            live=float(np.quantile(patches["live"], self.params.audience_quantile)),
            applause=float(np.quantile(patches["applause"], self.params.audience_quantile)),
            speech=float(patches["speech"].mean()),
            singing=float(patches["singing"].mean()),
        )
