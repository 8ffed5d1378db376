"""Demucs: separates the stems of a mix, several segments at a time.

Rouard, Massa and Défossez, "Hybrid Transformers for Music Source Separation", ICASSP 2023; the package `demucs`.
Segments overlap and are cross-faded as in the package, but they go through the network in batches, and a song is
returned piece by piece.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

SAMPLE_RATE_HZ = 44_100
_OVERLAP = 0.25
_TOGETHER = 4  # segments of 7.8 s in a batch
_CLASSES = ("demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs")
_SILENT = 1e-8


class Demucs:
    """One network, or a weighted bag of them. A network is loaded when a source first needs it."""

    def __init__(self, shares: dict[Path, dict[str, float]], device: str) -> None:
        """From the networks' files, each with its weight in every source that it separates."""
        self._shares = shares
        self._device = device
        self._networks: dict[Path, Any] = {}

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "Demucs":
        """Load the bag in a folder: NAME.yaml with a list of models, and a safetensors file for each.

        Raises:
            ImportError: the package is not installed.
            ValueError: the folder holds no bag, or a file of a kind that Demucs does not publish.
        """
        import demucs.hf  # noqa: F401 - so that a missing package shows now, not at the first song

        if len(bags := sorted(folder.glob("*.yaml"))) != 1:
            raise ValueError(f"{folder}: expected one .yaml that lists the models, found {len(bags)}")
        bag = yaml.safe_load(bags[0].read_text())
        files = [folder / f"{signature}.safetensors" for signature in bag["models"]]
        shares = {}
        for file, weights in zip(files, bag.get("weights") or [None] * len(files), strict=True):
            sources = _sources(file)
            shares[file] = dict(zip(sources, weights or [1.0] * len(sources), strict=True))
        return cls(shares, device)

    @torch.inference_mode()
    def separate(self, mix: np.ndarray, sources: Sequence[str] = ("vocals",)) -> Iterator[np.ndarray]:
        """Float32 [2, samples] at 44.1 kHz to `sources`, in consecutive pieces [sources, 2, some samples].

        Networks without a weight in any of the sources do not run.
        """
        audio = torch.from_numpy(np.ascontiguousarray(mix))
        reference = audio.mean(0)
        if not audio.shape[1] or reference.std() < _SILENT:
            yield np.zeros((len(sources), *mix.shape), mix.dtype)
            return
        mean, deviation = reference.mean(), reference.std()
        for piece in self._overlapped((audio - mean) / deviation, sources):
            yield (piece * deviation + mean).numpy()

    def _overlapped(self, audio: Tensor, sources: Sequence[str]) -> Iterator[Tensor]:
        """Sources of normalised audio [2, samples], in pieces."""
        networks = self._sharing(sources)
        length, segment = audio.shape[1], int(networks[0][0].segment * networks[0][0].samplerate)
        stride = int((1 - _OVERLAP) * segment)
        fade = _triangle(segment)
        # Running sums of the segments from the next piece on, and of their weights.
        sums, weights = torch.zeros(len(sources), 2, segment), torch.zeros(segment)
        for first in range(0, length, stride * _TOGETHER):
            offsets = range(first, min(length, first + stride * _TOGETHER), stride)
            segments = torch.stack([_around(audio, offset, segment) for offset in offsets]).to(self._device)
            separated = sum(shares * _picked(network, segments, sources) for network, shares in networks)
            assert isinstance(separated, Tensor)  # there is at least one network
            for offset, made in zip(offsets, separated.cpu(), strict=True):
                known = min(segment, length - offset)
                begin = (segment - known) // 2
                sums[..., :known] += fade[:known] * made[..., begin : begin + known]
                weights[:known] += fade[:known]
                ready = min(stride, known)
                yield sums[..., :ready] / weights[:ready]
                sums = torch.nn.functional.pad(sums[..., stride:], (0, stride))
                weights = torch.nn.functional.pad(weights[stride:], (0, stride))

    def _sharing(self, sources: Sequence[str]) -> list[tuple[Any, Tensor]]:
        """Networks with a weight in any of the sources, and these weights [sources, 1, 1]."""
        total = torch.tensor([sum(made[source] for made in self._shares.values()) for source in sources])
        sharing = []
        for file, made in self._shares.items():
            if any(made[source] for source in sources):
                if file not in self._networks:
                    self._networks[file] = _network(file).eval().to(self._device)
                shares = torch.tensor([made[source] for source in sources]) / total
                sharing.append((self._networks[file], shares[:, None, None].to(self._device)))
        return sharing


def _picked(network: Any, segments: Tensor, sources: Sequence[str]) -> Tensor:
    """Segments [batch, 2, samples] to their sources [batch, sources, 2, samples]."""
    made: Tensor = network(segments)
    return made[:, [network.sources.index(source) for source in sources]]


def _sources(file: Path) -> list[str]:
    metadata = _metadata(file)
    sources = yaml.safe_load(metadata["kwargs"]).get("sources") or yaml.safe_load(metadata["args"])[0]
    return list(sources)


def _network(file: Path) -> Any:
    from demucs.hf import load_safetensors_model

    return load_safetensors_model(file)


def _metadata(file: Path) -> dict[str, str]:
    """A file's metadata, if its class is one of Demucs': the package would import and call whatever a file names."""
    with safe_open(str(file), framework="pt") as opened:
        metadata: dict[str, str] = opened.metadata() or {}
    if metadata.get("klass") not in _CLASSES or "structure" in metadata:
        raise ValueError(f"{file}: it is for {metadata.get('klass')}, expected one of {', '.join(_CLASSES)}, unpacked")
    return metadata


def _around(audio: Tensor, offset: int, segment: int) -> Tensor:
    """A segment; one that extends past the end of the audio is centred on what is left, with zeros on both sides."""
    missing = max(0, offset + segment - audio.shape[1])
    start = offset - missing // 2
    begin, end = max(0, start), min(audio.shape[1], start + segment)
    return torch.nn.functional.pad(audio[:, begin:end], (begin - start, start + segment - end))


def _triangle(length: int) -> Tensor:
    rising = torch.arange(1, length // 2 + 1)
    fade = torch.cat([rising, torch.arange(length - length // 2, 0, -1)]).float()
    return fade / fade.max()
