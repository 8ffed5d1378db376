"""Demucs: separates the vocals of a mix, several segments at a time.

Rouard, Massa and Défossez, "Hybrid Transformers for Music Source Separation", ICASSP 2023; the package `demucs`.
Segments overlap and are faded into each other as the package does it, but go through the network in batches, and a song
comes out piece by piece.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

SAMPLE_RATE_HZ = 44_100
_SOURCE = "vocals"
_OVERLAP = 0.25
_TOGETHER = 4  # segments of 7.8 s in a batch
_CLASSES = ("demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs")
_SILENT = 1e-8


class Demucs:
    """The vocals of a mix by one network, or by those of a bag that are for vocals."""

    def __init__(self, networks: list[tuple[Any, float]], device: str) -> None:
        """Networks with their shares in the vocals."""
        total = sum(share for _, share in networks)
        self._networks = [(network.eval().to(device), share / total) for network, share in networks if share]
        self._device = device
        first = self._networks[0][0]
        self._segment = int(first.segment * first.samplerate)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "Demucs":
        """The bag in a folder: NAME.yaml with a list of models, and a safetensors file for each.

        Networks of the bag that are not for vocals are not read.

        Raises:
            ValueError: the folder holds no bag, or a file of a kind that Demucs does not publish.
        """
        if len(bags := sorted(folder.glob("*.yaml"))) != 1:
            raise ValueError(f"{folder}: expected one .yaml that lists the models, found {len(bags)}")
        bag = yaml.safe_load(bags[0].read_text())
        files = [folder / f"{signature}.safetensors" for signature in bag["models"]]
        networks = []
        for file, shares in zip(files, bag.get("weights") or [None] * len(files), strict=True):
            index = _sources(file).index(_SOURCE)
            if share := shares[index] if shares else 1.0:
                networks.append((_network(file), float(share)))
        return cls(networks, device)

    @torch.inference_mode()
    def separate(self, mix: np.ndarray) -> Iterator[np.ndarray]:
        """Float32 [2, samples] at 44.1 kHz to its vocals, in pieces [2, some samples], one after the other."""
        audio = torch.from_numpy(np.ascontiguousarray(mix))
        reference = audio.mean(0)
        if not audio.shape[1] or reference.std() < _SILENT:
            yield np.zeros_like(mix)
            return
        mean, deviation = reference.mean(), reference.std()
        for piece in self._overlapped((audio - mean) / deviation):
            yield (piece * deviation + mean).numpy()

    def _overlapped(self, audio: Tensor) -> Iterator[Tensor]:
        """Vocals of normalised audio [2, samples], in pieces."""
        length, segment = audio.shape[1], self._segment
        stride = int((1 - _OVERLAP) * segment)
        fade = _triangle(segment)
        # What segments have added up to from the next piece on, and by which weights.
        sums, weights = torch.zeros(2, segment), torch.zeros(segment)
        for first in range(0, length, stride * _TOGETHER):
            offsets = range(first, min(length, first + stride * _TOGETHER), stride)
            vocals = self._vocals(torch.stack([_around(audio, offset, segment) for offset in offsets]))
            for offset, made in zip(offsets, vocals, strict=True):
                known = min(segment, length - offset)
                begin = (segment - known) // 2
                sums[:, :known] += fade[:known] * made[:, begin : begin + known]
                weights[:known] += fade[:known]
                ready = min(stride, known)
                yield sums[:, :ready] / weights[:ready]
                sums = torch.nn.functional.pad(sums[:, stride:], (0, stride))
                weights = torch.nn.functional.pad(weights[stride:], (0, stride))

    def _vocals(self, segments: Tensor) -> Tensor:
        """[batch, 2, samples] to the same."""
        heard = segments.to(self._device)
        made = sum(share * network(heard)[:, network.sources.index(_SOURCE)] for network, share in self._networks)
        assert isinstance(made, Tensor)  # there is at least one network
        return made.cpu()


def _sources(file: Path) -> list[str]:
    metadata = _metadata(file)
    told = yaml.safe_load(metadata["kwargs"]).get("sources") or yaml.safe_load(metadata["args"])[0]
    return list(told)


def _network(file: Path) -> Any:
    from demucs.hf import load_safetensors_model

    return load_safetensors_model(file)


def _metadata(file: Path) -> dict[str, str]:
    """Of a file whose class is one of Demucs': the package would import and call whatever a file names."""
    with safe_open(str(file), framework="pt") as opened:
        metadata: dict[str, str] = opened.metadata() or {}
    if metadata.get("klass") not in _CLASSES or "structure" in metadata:
        raise ValueError(f"{file}: it is for {metadata.get('klass')}, expected one of {', '.join(_CLASSES)}, unpacked")
    return metadata


def _around(audio: Tensor, offset: int, segment: int) -> Tensor:
    """A segment; one that ends behind the audio has what there is on both sides of it, and zeros beyond."""
    missing = max(0, offset + segment - audio.shape[1])
    start = offset - missing // 2
    begin, end = max(0, start), min(audio.shape[1], start + segment)
    return torch.nn.functional.pad(audio[:, begin:end], (begin - start, start + segment - end))


def _triangle(length: int) -> Tensor:
    rising = torch.arange(1, length // 2 + 1)
    fade = torch.cat([rising, torch.arange(length - length // 2, 0, -1)]).float()
    return fade / fade.max()
