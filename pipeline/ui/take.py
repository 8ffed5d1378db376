"""A clip generated in this session of the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.ui.tasks import TASKS
from training.sampling import SamplingOptions

# Argument of `Sampler.generate` -> its name in `songmill sample --config`, where they differ.
_SETTINGS = {
    "lyrics": "lyrics_text",
    "target_lyrics": "target_lyrics_text",
    "seeds": "seed",
    "retake_seeds": "retake_seed",
}


@dataclass(frozen=True)
class SessionTake:
    """A generated clip and its parameters.

    Attributes:
        number: from 1.
        path: WAV file.
        peaks: see `waveforms.peaks`.
        duration: seconds.
        call: arguments of `Sampler.generate`, with the seeds that were used.
        loaded: settings of the sampler.
    """

    number: int
    path: Path
    peaks: list[float]
    duration: float
    call: Mapping[str, Any]
    loaded: Mapping[str, Any]

    @property
    def shown(self) -> dict[str, Any]:
        """The take as the decks' component expects it."""
        task = self.call["task"]
        return {
            "title": f"{self.number} · {TASKS[task].label} · {self.duration:.1f} s",
            "name": self._name,
            "file": {"path": str(self.path), "meta": {"_type": "gradio.FileData"}},  # Gradio adds the URL
            "peaks": self.peaks,
            "duration": self.duration,
            "parameters": {"settings": self.settings},
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The settings with which `songmill sample --config` reproduces the clip.

        Of an upload, only the name is known.
        """
        given = {name: value for name, value in self.call.items() if name not in SamplingOptions.model_fields}
        options = {name: value for name, value in self.call.items() if name not in given}
        if "source" in given:
            given["source"] = given["source"].name
        return {
            **self.loaded,
            "out": f"{self._name}.wav",
            **{_SETTINGS.get(name, name): value for name, value in given.items()},
            **SamplingOptions(**options).model_dump(mode="json"),
        }

    @property
    def _name(self) -> str:
        return f"songmill-{self.number}-{self.call['task']}-{self.call['seeds']}"
