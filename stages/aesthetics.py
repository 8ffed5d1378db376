"""Production quality and appeal of a track: the four scores of Audiobox Aesthetics."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field

from schemas import columns
from stages import base, pcm
from stages.base import Stage, Track, Weights
from stages.libraries import Library

MODEL = "audiobox-aesthetics"
_RATE_HZ = 16_000
_WINDOW = 10 * _RATE_HZ


class AestheticsParams(base.Params):
    """How windows are batched.

    Attributes:
        batch_windows: windows that go through the network together, about 0.4 GB each. More of them keep a GPU busy;
            the scores do not depend on it.
    """

    batch_windows: int = Field(4, ge=1, exclude=True)


class Aesthetics(Stage):
    """Content enjoyment, content usefulness, production complexity and production quality, 1..10 each.

    The track is cut into windows of 10 s, the last one padded and masked; the scores are the mean over the windows,
    weighted by how much of each is music. An empty track has null scores.

    Source: Tjandra et al., "Meta Audiobox Aesthetics" (arXiv 2502.05139); the package `audiobox-aesthetics`.
    """

    name = "aesthetics"
    type = columns.AESTHETICS
    reads = {"pcm": pcm.PCM}
    libraries = (
        Library("Audiobox Aesthetics", module="audiobox_aesthetics", package="audiobox-aesthetics", extra=None),
    )
    Params = AestheticsParams

    @property
    def models(self) -> tuple[str, ...]:
        """The released network: `model.safetensors` and `config.json`."""
        return (MODEL,)

    def setup(self, weights: Mapping[str, Weights]) -> None:
        """Load the network."""
        super().setup(weights)
        from audiobox_aesthetics.model.aes import AesMultiOutput

        self._network = AesMultiOutput.from_pretrained(weights[MODEL].path).eval().to(self.device)

    def process(self, track: Track) -> dict[str, Any]:
        """Score the `pcm` column."""
        audio = pcm.mono(track["pcm"], _RATE_HZ)
        windows, present = _windows(audio)
        if not len(windows):
            return self.own()
        shares = present.float().mean(dim=(1, 2))
        scores = {}
        with torch.inference_mode():
            size = self.params.batch_windows
            batches = zip(windows.split(size), present.split(size), strict=True)
            outputs = [
                self._network({"wav": wav.to(self.device), "mask": mask.to(self.device)}) for wav, mask in batches
            ]
        for axis, scale in self._network.target_transform.items():
            raw = torch.cat([output[axis] for output in outputs]).cpu()
            scores[axis.lower()] = float((raw * shares).sum() / shares.sum()) * scale["std"] + scale["mean"]
        return self.own(**scores)


def _windows(audio: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows [windows, 1, 160000], the last padded with zeros, and a mask of that shape, True where the track is."""
    count = -(-len(audio) // _WINDOW)
    padded = np.pad(audio, (0, count * _WINDOW - len(audio)))
    present = np.arange(count * _WINDOW) < len(audio)
    windows, mask = (torch.from_numpy(values).reshape(count, 1, _WINDOW) for values in (padded, present))
    return windows, mask
